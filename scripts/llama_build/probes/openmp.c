/* Compiles and links only where the compiler brings OpenMP; prints nothing, exit 0. */
#include <omp.h>

int main(void) { return omp_get_max_threads() > 0 ? 0 : 11; }
