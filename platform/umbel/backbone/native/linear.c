/* A frozen linear, y = x W^T + b, for processors whose widest bf16 product is AVX512's.

   W lies in blocks of COLUMNS outputs, each with two inputs of every output side by side, in the order that they are
   read. A number of y is one sum over the inputs, two at a time, whatever rows stand beside it: no row needs company.
   While a block is multiplied with tile after tile of rows, the next one is fetched, so that a step of few rows is as
   fast as the memory, and one of many as fast as the multipliers. */

#include "vectors.h"

#define COLUMNS 48 /* outputs of a block: with TILE rows, their sums fill the registers */
#define VECTORS (COLUMNS / LANES)
#define TILE 8

typedef struct {
    const bf16 *x; /* [rows, d_in], ``d_in`` even */
    int64_t rows, d_in, d_out;
    const bf16 *w;    /* [blocks, d_in / 2, COLUMNS, 2], zero beyond d_out */
    const bf16 *bias; /* [d_out] or NULL */
    bf16 *y;          /* [rows, d_out] */
} Linear;

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

int umbel_has_linear(void) { return 1; }

INLINE void store(const Linear *s, f32x16 sum, int64_t row, int64_t column) {
    int64_t left = s->d_out - column;
    bf16 *y = s->y + row * s->d_out + column;
    if (left <= 0) return;
    if (left >= LANES) {
        narrow16(y, s->bias ? sum + wide16(s->bias + column) : sum);
        return;
    }
    for (int64_t i = 0; i < left; i++) y[i] = narrow(s->bias ? sum[i] + wide(s->bias[column + i]) : sum[i]);
}

/* ``n`` rows with a block; fetches ``lines`` cache lines from ``ahead`` on for each pair of inputs. */
INLINE void tile(const Linear *s, int64_t row, int64_t block, const char *ahead, int64_t lines, const int n) {
    int64_t pairs = s->d_in / 2;
    const bf16 *x = s->x + row * s->d_in, *w = s->w + block * pairs * 2 * COLUMNS;
    f32x16 sums[TILE][VECTORS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) sums[i][j] = all(0.0f);
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh ws[VECTORS];
        for (int j = 0; j < VECTORS; j++) ws[j] = (__m512bh)_mm512_loadu_si512(w + (k * COLUMNS + j * LANES) * 2);
        for (int64_t i = k * lines; i < (k + 1) * lines; i++) _mm_prefetch(ahead + i * 64, _MM_HINT_T1);
        for (int i = 0; i < n; i++) {
            int pair;
            memcpy(&pair, x + i * s->d_in + 2 * k, sizeof pair);
            __m512bh xs = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < VECTORS; j++) sums[i][j] = (f32x16)_mm512_dpbf16_ps((__m512)sums[i][j], xs, ws[j]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < VECTORS; j++) store(s, sums[i][j], row + i, block * COLUMNS + j * LANES);
}

/* Rows ``from`` to ``to`` with a block. */
static void multiply(const Linear *s, int64_t from, int64_t to, int64_t block, int more) {
    int64_t tiles = (to - from + TILE - 1) / TILE, lines = (VECTORS + tiles - 1) / tiles;
    const char *ahead = (const char *)(s->w + (block + 1) * s->d_in * COLUMNS);
    int64_t left = more ? VECTORS * s->d_in / 2 : 0;
    for (int64_t row = from; row < to; row += TILE) {
        int64_t now = left > 0 ? lines : 0;
        switch (to - row) {
        case 1: tile(s, row, block, ahead, now, 1); break;
        case 2: tile(s, row, block, ahead, now, 2); break;
        case 3: tile(s, row, block, ahead, now, 3); break;
        case 4: tile(s, row, block, ahead, now, 4); break;
        case 5: tile(s, row, block, ahead, now, 5); break;
        case 6: tile(s, row, block, ahead, now, 6); break;
        case 7: tile(s, row, block, ahead, now, 7); break;
        default: tile(s, row, block, ahead, now, TILE);
        }
        ahead += now * s->d_in / 2 * 64, left -= now * s->d_in / 2;
    }
}

/* Blocks are shared out among threads; rows, too, where blocks are too few to give each as much. */
static void share(const Linear *s, int threads) {
    int64_t blocks = (s->d_out + COLUMNS - 1) / COLUMNS, most = s->rows / (2 * TILE), parts = 1;
    while (parts < most && blocks * parts < 4 * threads && blocks * parts % threads) parts++;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < blocks * parts; task++) {
        int64_t part = task / blocks, block = task % blocks;
        int64_t from = s->rows * part / parts, to = s->rows * (part + 1) / parts;
        multiply(s, from, to, block, block + 1 < blocks);
    }
}

#else

int umbel_has_linear(void) { return 0; }

static void share(const Linear *s, int threads) { (void)s, (void)threads; }

#endif

void umbel_linear(
    const bf16 *x, int64_t rows, int64_t d_in, int64_t d_out, const bf16 *w, const bf16 *bias, bf16 *y, int threads
) {
    Linear s = {x, rows, d_in, d_out, w, bias, y};
    share(&s, threads);
}
