/* Included before every C++ file of llama.cpp where the processor has AMX (see bootstrap.py).
 *
 * GCC's own _tile_loadconfig tells the compiler that 8 of the 64 bytes are read (GCC bug 114098; right since 11.5, 12.4, 13.3
 * and 14), so that the stores of the others are dropped, and llama.cpp dies of an illegal instruction at its first batch.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 14
#include <immintrin.h>
struct localgemma_tile_configuration {
    char bytes[64];
} __attribute__((may_alias));
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const struct localgemma_tile_configuration *)(config)))
#endif
