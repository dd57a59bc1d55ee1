/* Quantisation of activations, expansion of stored rows, narrowing, for any vector length: the bits of
 * quant_ref.c. */
enum { PER_BLOCK = SL_BLOCK / SL_LANES };

/* x[i] .. x[i + LANES - 1] with zeros from element n on */
SL_INLINE vf load_padded(const float *x, size_t i, size_t n) {
    return i + SL_LANES <= n ? v_load(x + i) : i < n ? v_load_n(x + i, n - i) : v_zero();
}

/* Loads a block; its largest magnitude, NaN if x is not finite: maxima lose a NaN, sums of 0 x keep it. */
SL_INLINE float load_block(const float *x, size_t first, size_t n, vf *v) {
    vf top = v_zero(), probe = v_zero();
    for (size_t j = 0; j < PER_BLOCK; j++) {
        v[j] = load_padded(x, first + j * SL_LANES, n);
        probe = v_fma(v[j], v_zero(), probe);
        top = v_max(top, v_abs(v[j]));
    }
    return v_top(top) + v_sum(probe);
}

/* Quants of a block and their negative sums by sixteens, each four times. Sums of whole floats are exact. */
SL_INLINE void store_block(const vf *v, vf inverse, int8_t *q, int32_t *sums) {
    for (size_t half = 0; half < 2; half++, sums += 4) {
        vf total = v_zero();
        for (size_t j = half * PER_BLOCK / 2; j < (half + 1) * PER_BLOCK / 2; j++) {
            const vf whole = v_round(v_mul(v[j], inverse));
            v_store_i8(q + j * SL_LANES, whole);
            total = v_add(total, whole);
        }
        const int32_t minus = -(int32_t)v_sum(total);
        for (size_t j = 0; j < 4; j++) sums[j] = minus;
    }
}

void SL_ISA(sl_quant_act)(const float *x, size_t n, void *out) {
    const size_t n_block = 2 * sl_groups(n);
    int8_t *q = out;
    int32_t *sums = (int32_t *)(q + sl_act_sums_offset(n));
    float *scales = (float *)(q + sl_act_scales_offset(n));
    for (size_t b = 0; b < n_block; b++) {
        vf v[PER_BLOCK];
        const float scale = load_block(x, b * SL_BLOCK, n, v) / 127;
        const bool empty = scale < 1e-30f;
        if (!isfinite(scale)) { /* rare, and its rules are written there */
            sl_quant_act_ref(x, n, out);
            return;
        }
        scales[b] = empty ? 0 : scale;
        store_block(v, v_set1(empty ? 0 : 1 / scale), q + b * SL_BLOCK, sums + 8 * b);
    }
    memset(scales + n_block, 0, sl_act_bytes(n) - sl_act_scales_offset(n) - n_block * sizeof *scales);
}

void SL_ISA(sl_expand_f16)(const void *row, size_t n, float *y) {
    const uint16_t *w = row;
    size_t i = 0;
    for (; i + SL_LANES <= n; i += SL_LANES) v_store(y + i, v_load_f16(w + i));
    if (i < n) v_store_n(y + i, v_load_f16_n(w + i, n - i), n - i);
}

void SL_ISA(sl_expand_bf16)(const void *row, size_t n, float *y) {
    const uint16_t *w = row;
    size_t i = 0;
    for (; i + SL_LANES <= n; i += SL_LANES) v_store(y + i, v_load_bf16(w + i));
    if (i < n) v_store_n(y + i, v_load_bf16_n(w + i, n - i), n - i);
}

/* Stored rows are padded, so quants are read in whole vectors. */
SL_INLINE void store_padded(float *y, size_t i, size_t n, vf value) {
    if (i + SL_LANES <= n) v_store(y + i, value);
    else if (i < n) v_store_n(y + i, value, n - i);
}

void SL_ISA(sl_expand_q8)(const void *row, size_t n, float *y) {
    const int8_t *q = row;
    const uint16_t *scales = (const uint16_t *)(q + SL_GROUP * sl_groups(n));
    for (size_t i = 0; i < n; i += SL_LANES) {
        store_padded(y, i, n, v_mul(v_load_i8(q + i), v_set1(sl_f16_to_f32(scales[i / SL_BLOCK]))));
    }
}

void SL_ISA(sl_expand_q4)(const void *row, size_t n, float *y) {
    const uint8_t *q = row;
    const uint16_t *scales = (const uint16_t *)(q + SL_GROUP / 2 * sl_groups(n));
    for (size_t i = 0; i < n; i += SL_LANES) {
        const uint8_t *bytes = q + i / SL_GROUP * SL_BLOCK + i % SL_BLOCK;
        const vf quants = v_sub(i % SL_GROUP < SL_BLOCK ? v_load_u4(bytes, 0) : v_load_u4(bytes, 4), v_set1(8));
        store_padded(y, i, n, v_mul(quants, v_set1(sl_f16_to_f32(scales[i / SL_BLOCK]))));
    }
}

void SL_ISA(sl_narrow_f16)(const float *x, uint16_t *y, size_t n) {
    for (size_t i = 0; i < n; i += SL_LANES) {
        const size_t width = n - i < SL_LANES ? n - i : SL_LANES;
        v_store_f16_n(y + i, v_load_n(x + i, width), width);
    }
}
