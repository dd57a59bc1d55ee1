#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

/* Prototypes: each function has the type of its table member. */
#define SL_KERNEL(member, isa, function) extern __typeof__(*(((sl_kernels *)0)->member)) function;
#include "kernels/kernels.def"
#undef SL_KERNEL

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
