/* The table of kernels, filled from kernels.def in its order: reference first, the best last. */
#include "kernels/prototypes.h"

#include <string.h>

sl_kernels sl_kernels_select(unsigned features) {
    sl_kernels table;
    memset(&table, 0, sizeof table);
    table.features = features;
#define SL_KERNEL(name, isa, function)                                                                       \
    if ((features & SL_CPU_##isa) == SL_CPU_##isa) table.name = function;
#include "kernels/kernels.def"
#undef SL_KERNEL
    return table;
}
