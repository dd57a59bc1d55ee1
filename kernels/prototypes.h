/* Prototypes of every kernel in kernels.def, each with the function type of its table member, so that a
 * kernel whose signature drifts from the table does not compile. For kernel sources, tests and benches. */
#ifndef SL_KERNELS_PROTOTYPES_H
#define SL_KERNELS_PROTOTYPES_H

#include "kernels/kernels.h"

#define SL_KERNEL(member, isa, function) extern __typeof__(*(((sl_kernels *)0)->member)) function;
#include "kernels/kernels.def"
#undef SL_KERNEL

#endif
