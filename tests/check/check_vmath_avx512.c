/* Vector functions under test, sixteen lanes. */
#include "kernels/simd/simd_avx512.h"

#include "check_vmath_lanes.h"
