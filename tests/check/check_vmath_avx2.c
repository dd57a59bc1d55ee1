/* Vector functions under test, eight lanes. */
#include "kernels/simd/simd_avx2.h"

#include "check_vmath_lanes.h"
