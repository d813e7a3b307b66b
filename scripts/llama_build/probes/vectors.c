/* Executes one instruction of the vector family named in argv[1], compiled with -march=native, on values the compiler
 * cannot know. Exit: 0 works, 11 wrong result, 77 not compiled in, 64 unknown family; death by SIGILL means that the
 * compiler's idea of this CPU and what the (virtual) machine executes differ. */
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

static volatile int one = 1;

static int avx2(void) {
#if defined(__AVX2__)
    int lanes[8];
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi32(_mm256_set1_epi32(one), _mm256_set1_epi32(one)));
    return lanes[7] == 2 ? 0 : 11;
#else
    return 77;
#endif
}

static int fma_f16c(void) {
#if defined(__FMA__) && defined(__F16C__) && defined(__AVX__)
    float lanes[8];
    const __m256 x = _mm256_cvtph_ps(_mm_set1_epi16((short)(0x3c00 * one)));
    _mm256_storeu_ps(lanes, _mm256_fmadd_ps(x, x, x));
    return lanes[7] == 2.0f ? 0 : 11;
#else
    return 77;
#endif
}

static int bmi2(void) {
#if defined(__BMI2__) && defined(__x86_64__)
    return _pdep_u64((unsigned long long)(3 * one), 0x0101ULL) == 0x0101ULL ? 0 : 11;
#else
    return 77;
#endif
}

static int avx_vnni(void) {
#if defined(__AVXVNNI__)
    int lanes[8];
    const __m256i x = _mm256_set1_epi8((char)one);
    _mm256_storeu_si256((__m256i *)lanes, _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), x, x));
    return lanes[7] == 4 ? 0 : 11;
#else
    return 77;
#endif
}

static int avx512(void) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
    int lanes[16];
    const __m512i x = _mm512_set1_epi16((short)one);
    _mm512_storeu_si512(lanes, _mm512_madd_epi16(x, _mm512_add_epi16(x, x)));
    return lanes[15] == 4 ? 0 : 11;
#else
    return 77;
#endif
}

static int avx512_vbmi(void) {
#if defined(__AVX512VBMI__)
    char lanes[64];
    const __m512i index = _mm512_set1_epi8((char)one);
    _mm512_storeu_si512(lanes, _mm512_permutexvar_epi8(index, index));
    return lanes[63] == 1 ? 0 : 11;
#else
    return 77;
#endif
}

static int avx512_vnni(void) {
#if defined(__AVX512VNNI__)
    int lanes[16];
    const __m512i x = _mm512_set1_epi8((char)one);
    _mm512_storeu_si512(lanes, _mm512_dpbusd_epi32(_mm512_setzero_si512(), x, x));
    return lanes[15] == 4 ? 0 : 11;
#else
    return 77;
#endif
}

static int avx512_bf16(void) {
#if defined(__AVX512BF16__)
    float lanes[16];
    const __m512 x = _mm512_set1_ps((float)one);
    const __m512bh pair = _mm512_cvtne2ps_pbh(x, x);
    _mm512_storeu_ps(lanes, _mm512_dpbf16_ps(_mm512_setzero_ps(), pair, pair));
    return lanes[15] == 2.0f ? 0 : 11;
#else
    return 77;
#endif
}

static const struct {
    const char *name;
    int (*run)(void);
} families[] = {
    {"avx2", avx2},
    {"fma_f16c", fma_f16c},
    {"bmi2", bmi2},
    {"avx_vnni", avx_vnni},
    {"avx512", avx512},
    {"avx512_vbmi", avx512_vbmi},
    {"avx512_vnni", avx512_vnni},
    {"avx512_bf16", avx512_bf16},
};

int main(int argc, char **argv) {
    for (size_t i = 0; argc > 1 && i < sizeof families / sizeof *families; i++) {
        if (strcmp(families[i].name, argv[1]) == 0) {
            return families[i].run();
        }
    }
    fprintf(stderr, "unknown family\n");
    return 64;
}
