/* The kernels that have been translated from PTX, by what sl_launch is given. */
#include "device_ptx.h"

#include <map>

/* Not a global object: the lists of other files come first in some order. */
static std::map<void (*)(void), const sl_ptx_kernel *> *known(void) {
    static std::map<void (*)(void), const sl_ptx_kernel *> kernels;
    return &kernels;
}

sl_ptx_kernels::sl_ptx_kernels(const sl_ptx_kernel *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        (*known())[list[i].kernel] = &list[i];
}

const sl_ptx_kernel *sl_ptx_find(void (*kernel)(void)) {
    auto found = known()->find(kernel);
    return found == known()->end() ? nullptr : found->second;
}
