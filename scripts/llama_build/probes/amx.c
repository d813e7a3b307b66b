/* Does AMX work here, and not only in CPUID? Does what ggml-cpu/amx does: asks the kernel for the tile state, loads a
 * tile configuration, multiplies two int8 tiles and checks the sum.
 * Exit: 0 works, 10 the kernel refuses, 11 wrong result, 77 not compiled in; a virtual machine that advertises AMX
 * without carrying its state dies here by SIGSEGV or SIGILL, which is the point. */
#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__linux__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

struct tile_config {
    uint8_t palette_id;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64)));

int main(void) {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) {
        return 10;
    }
    struct tile_config config;
    memset(&config, 0, sizeof config);
    config.palette_id = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = 16;
        config.column_bytes[tile] = 64;
    }
    _tile_loadconfig(&config);

    static int8_t left[16 * 64], right[16 * 64];
    static int32_t sum[16 * 16];
    memset(left, 2, sizeof left);
    memset(right, 3, sizeof right);
    _tile_zero(0);
    _tile_loadd(1, left, 64);
    _tile_loadd(2, right, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, sum, 64);
    _tile_release();
    for (int i = 0; i < 16 * 16; i++) {
        if (sum[i] != 64 * 2 * 3) {
            return 11;
        }
    }
    return 0;
}

#else

int main(void) { return 77; }

#endif
