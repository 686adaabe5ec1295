/* What stands between the linears of a layer, row by row: one pass in fp32, rounded once. */

#include "tape.h"

/* Rows that are worth the other threads. */
#define SMALL (1 << 15)

static float exp1(float x) {
    float y[LANES];
    f32x16 e = exp16(all(x));
    memcpy(y, &e, sizeof y);
    return y[0];
}

/* x += more, rounded once. */
static void add(bf16 *x, const bf16 *more, int64_t width) {
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) narrow16(x + c, wide16(x + c) + wide16(more + c));
    for (; c < width; c++) x[c] = narrow(wide(x[c]) + wide(more[c]));
}

static void norm(const bf16 *from, const bf16 *weight, bf16 *to, int64_t width, float eps) {
    f32x16 squares = all(0.0f);
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) {
        f32x16 v = wide16(from + c);
        squares += v * v;
    }
    float sum = sum16(squares);
    for (int64_t l = c; l < width; l++) sum += wide(from[l]) * wide(from[l]);
    float scale = 1.0f / sqrtf(sum / (float)width + eps);
    for (c = 0; c + LANES <= width; c += LANES)
        narrow16(to + c, wide16(from + c) * all(scale) * wide16(weight + c));
    for (; c < width; c++) to[c] = narrow(wide(from[c]) * scale * wide(weight[c]));
}

/* y = x / sqrt(mean(x^2) + eps) * weight */
void umbel_rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) norm(x + row * width, weight, y + row * width, width, eps);
}

typedef struct {
    bf16 *x;
    const bf16 *more, *weight; /* each may be NULL */
    bf16 *y;
    int64_t width;
    float eps;
} Norm;

/* x += more, then y as above: what is between a block's output and the next one's input. */
void umbel_tape_norm(const Now *now, const void *told, int threads) {
    const Norm *t = told;
#pragma omp parallel for num_threads(threads) if (now->rows * t->width > SMALL)
    for (int64_t row = 0; row < now->rows; row++) {
        int64_t at = row * t->width;
        if (t->more) add(t->x + at, t->more + at, t->width);
        if (t->weight) norm(t->x + at, t->weight, t->y + at, t->width, t->eps);
    }
}

/* y = silu(gate) * up, where x is [rows, gate | up]. */
void umbel_silu_mul(const bf16 *x, bf16 *y, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *gate = x + row * 2 * width, *up = gate + width;
        bf16 *to = y + row * width;
        int64_t c = 0;
        for (; c + LANES <= width; c += LANES) {
            f32x16 g = wide16(gate + c), u = wide16(up + c);
            i32x16 low = g < all(0.0f);
            f32x16 e = exp16((f32x16)((u32x16)g | 0x80000000u)); /* e^-|g| */
            f32x16 top = (f32x16)(((i32x16)e & low) | ((i32x16)all(1.0f) & ~low));
            narrow16(to + c, g * u * top / (all(1.0f) + e));
        }
        for (; c < width; c++) {
            float g = wide(gate[c]), e = exp1(-fabsf(g));
            to[c] = narrow(g * wide(up[c]) * (g < 0.0f ? e : 1.0f) / (1.0f + e));
        }
    }
}

typedef struct {
    const bf16 *x;
    bf16 *y;
    int64_t width;
} Silu;

void umbel_tape_silu_mul(const Now *now, const void *told, int threads) {
    const Silu *t = told;
    umbel_silu_mul(t->x, t->y, now->rows, t->width, threads);
}

/* RoPE of the first ``heads`` heads of each row, in place; feature i pairs with i + d/2. */
void umbel_rotate(
    bf16 *x, int64_t stride, const bf16 *cosines, const bf16 *sines, int64_t rows, int64_t heads, int64_t d, int threads
) {
    int64_t half = d / 2;
#pragma omp parallel for num_threads(threads) if (rows * heads * d > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *cs = cosines + row * d, *sn = sines + row * d;
        for (int64_t head = 0; head < heads; head++) {
            bf16 *a = x + row * stride + head * d, *b = a + half;
            int64_t c = 0;
            for (; c + LANES <= half; c += LANES) {
                f32x16 first = wide16(a + c), second = wide16(b + c);
                narrow16(a + c, first * wide16(cs + c) - second * wide16(sn + c));
                narrow16(b + c, second * wide16(cs + half + c) + first * wide16(sn + half + c));
            }
            for (; c < half; c++) {
                float first = wide(a[c]), second = wide(b[c]);
                a[c] = narrow(first * wide(cs[c]) - second * wide(sn[c]));
                b[c] = narrow(second * wide(cs[half + c]) + first * wide(sn[half + c]));
            }
        }
    }
}

typedef struct {
    bf16 *x;
    int64_t stride, heads, d;
} Rotate;

void umbel_tape_rotate(const Now *now, const void *told, int threads) {
    const Rotate *t = told;
    umbel_rotate(t->x, t->stride, now->cosines, now->sines, now->rows, t->heads, t->d, threads);
}

typedef struct {
    const float *scale; /* [width], or NULL: these rows stay */
    int64_t first, count; /* of its rows in ``rows`` */
} Scaled;

/* (IA)3: y = scale * y, in place, for all rows of a step; ``rows`` says which of them belong to which scale. */
void umbel_scale(
    bf16 *y, int64_t width, const int32_t *rows, const Scaled *groups, int64_t count, int64_t all_rows, int threads
) {
#pragma omp parallel num_threads(threads) if (all_rows * width > SMALL)
    {
        int me = 0, threads_here = 1;
#ifdef _OPENMP
        me = omp_get_thread_num(), threads_here = omp_get_num_threads();
#endif
        for (const Scaled *g = groups; g < groups + count; g++)
            for (int64_t i = g->first; g->scale && i < g->first + g->count; i++) {
                if (i % threads_here != me) continue;
                bf16 *to = y + rows[i] * width;
                int64_t c = 0;
                for (; c + LANES <= width; c += LANES) {
                    f32x16 scale;
                    memcpy(&scale, g->scale + c, sizeof scale);
                    narrow16(to + c, wide16(to + c) * scale);
                }
                for (; c < width; c++) to[c] = narrow(wide(to[c]) * g->scale[c]);
            }
    }
}

typedef struct {
    bf16 *y;
    int64_t width;
    const int32_t *rows;
    const Scaled *groups;
    int64_t count, all_rows;
} Scale;

void umbel_tape_scale(const Now *now, const void *told, int threads) {
    const Scale *t = told;
    umbel_scale(t->y, t->width, t->rows, t->groups, t->count, t->all_rows, threads);
    (void)now;
}
