/* Checks of the test device's own tests. */
#ifndef SL_TESTS_DEVICE_DEVICE_CHECK_H
#define SL_TESTS_DEVICE_DEVICE_CHECK_H

#include "kernels/cuda.h"
#include "test_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int sl_check_failures;

#define CHECK(x)   \
    ((x) ? (void)0 \
         : (void)(sl_check_failures++, fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x)))
#define CHECK_FAULT(text)                                                                                 \
    (strstr(sl_device_fault(), text)                                                                      \
         ? (void)0                                                                                        \
         : (void)(sl_check_failures++, fprintf(stderr, "%s:%d: fault is '%s', expected '%s'\n", __FILE__, \
                                               __LINE__, sl_device_fault(), text)))

/* n elements of zeroed device memory. */
template <class T> T *device_array(size_t n) {
    void *p = nullptr;
    CHECK(cudaMalloc(&p, n * sizeof(T)) == cudaSuccess);
    CHECK(cudaMemset(p, 0, n * sizeof(T)) == cudaSuccess);
    return static_cast<T *>(p);
}

template <class T> void fetch(T *to, const T *from, size_t n) {
    CHECK(cudaMemcpy(to, from, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
}

/* Does the function end its process otherwise than by returning? */
bool dies(void (*f)(void));

void test_runtime(void);

#endif
