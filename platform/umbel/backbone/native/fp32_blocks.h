/* A block times rows where the processor does not multiply bf16: in fp32.

   A block becomes floats in the nearest cache, DEPTH inputs at a time, whatever form it has, and all rows are multiplied
   with them there; their sums wait in the cache for the inputs that follow. A thread's rows become floats once for each
   linear. */

#include "linear.h"

/* Rows and vectors of a block whose sums fill the registers. */
#if WIDTH == 16
#define TILE 8
#define BESIDE 3
#elif REGISTERS == 32
#define TILE 6
#define BESIDE 4
#elif WIDTH == 8
#define TILE 6
#define BESIDE 2
#else
#define TILE 4
#define BESIDE 2
#endif
#define DEPTH 128 /* inputs, an even number of every form's pairs */
#define STEPS 16 /* inputs between which lines are fetched */

/* Numbers from a row of floats to the next: not a power of two, or all rows would want the same places of the cache. */
INLINE int64_t apart(int64_t d_in) { return (d_in + LANES - 1) / LANES * LANES + LANES; }

/* Bytes that a thread needs beside what it is told: for DEPTH inputs of a block, for rows, and for their sums. */
INLINE int64_t room_for(int64_t rows, int64_t d_in, int codes) {
    (void)codes;
    return (DEPTH * COLUMNS + rows * (apart(d_in) + COLUMNS)) * (int64_t)sizeof(float);
}

typedef struct {
    float *w; /* [DEPTH, COLUMNS] */
    float *x; /* [rows, apart(d_in)] */
    float *sums; /* [rows, COLUMNS] */
} Desk;

INLINE Desk desk(const Linear *s, char *room) {
    float *w = (float *)room, *x = w + DEPTH * COLUMNS;
    return (Desk){w, x, x + s->rows * apart(s->of->d_in)};
}

/* Rows ``from`` to ``to`` become floats. */
static void prepare(const Linear *s, int64_t from, int64_t to, char *room) {
    int64_t d_in = s->of->d_in;
    float *x = desk(s, room).x;
    for (int64_t row = from; row < to; row++, x += apart(d_in)) {
        const bf16 *given = s->of->x + row * d_in;
        int64_t k = 0;
        for (; k + WIDTH <= d_in; k += WIDTH) keep(x + k, wides(given + k));
        for (; k < d_in; k++) x[k] = wide(given[k]);
    }
}

/* Where in a block its weights have been read to. */
typedef struct {
    const Linear *of;
    int64_t block, pair; /* the next one */
    const char *w;
    const int32_t *other; /* of a compact block: the next pair that stands whole, and where */
    const char *whole;
} Way;

INLINE Way way_to(const Linear *s, int64_t block) {
    Way at = {s, block, 0, s->of->w + block * size_of(s->of), 0, 0};
    if (s->form == COMPACT) {
        int64_t first = s->of->first[block];
        at.other = s->of->others + first + block, at.whole = s->of->whole + first * stride(BF16);
    }
    return at;
}

/* Two inputs of 16 outputs, those of an output side by side. */
INLINE void spread(const char *numbers, float *to) {
    for (int i = 0; i < LANES; i += WIDTH) {
        Bits both;
        memcpy(&both, numbers + 4 * i, sizeof both);
        keep(to + i, (Vector)(both << 16)), keep(to + COLUMNS + i, (Vector)(both & 0xffff0000u));
    }
}

INLINE void spread_pair(const char *w, float *to) {
    for (int j = 0; j < VECTORS; j++) spread(w + j * 4 * LANES, to + j * LANES);
}

/* Of WIDTH outputs two inputs each, a byte or a nibble of 16 bits. */
INLINE Bits spread_halves(const char *w) {
    Halves both;
    memcpy(&both, w, sizeof both);
    return __builtin_convertvector(both, Bits);
}

INLINE void spread_bytes(const char *w, float *to) {
    for (int j = 0; j < COLUMNS; j += WIDTH) {
        Whole each = (Whole)spread_halves(w + 2 * j);
        keep(to + j, __builtin_convertvector(each << 24 >> 24, Vector));
        keep(to + COLUMNS + j, __builtin_convertvector(each << 16 >> 24, Vector));
    }
}

/* Of bf16, as the other forms hold it; none of these is NaN. */
INLINE Vector rounded(Vector x) {
    Bits bits = (Bits)x;
    return (Vector)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

/* What the low nibbles stand for. */
INLINE Vector looked_up(const float *table, Bits which) {
#if defined(__AVX512F__)
    return (Vector)_mm512_permutexvar_ps((__m512i)which, _mm512_loadu_ps(table));
#elif defined(__AVX2__) /* by three bits in either half, and by the fourth one of the two */
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)which);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)which);
    return (Vector)_mm256_blendv_ps(low, high, (__m256)(which << 28));
#else
    Vector found;
    for (int i = 0; i < WIDTH; i++) found[i] = table[which[i] & 15];
    return found;
#endif
}

/* Of outputs ``j`` and following: of 16 bytes the low nibbles are two inputs of the first 8 of 16 outputs, the high ones
   those of the rest. */
INLINE Bits nibbles(const char *w, int j) {
    w += j / LANES * LANES;
#ifdef __AVX512F__
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)w));
    return (Bits)_mm512_cvtepu16_epi32(twice) >> (Bits){0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
#else
    return spread_halves(w + j % 8 * 2) >> (j % LANES / 8 * 4);
#endif
}

/* ``count`` pairs of inputs that share scales. */
INLINE void spread_nibbles(const Product *of, const char *w, int64_t group, int64_t count, float *to) {
    Vector scales[COLUMNS / WIDTH], zeros[COLUMNS / WIDTH];
    for (int v = 0; v < COLUMNS / WIDTH; v++) {
        int64_t at = group * COLUMNS + v * WIDTH;
        scales[v] = (Vector)(spread_halves((const char *)(of->scales + at)) << 16);
        zeros[v] = of->zeros ? (Vector)(spread_halves((const char *)(of->zeros + at)) << 16) : (Vector){0};
    }
    for (; count > 0; count--, w += stride(NIBBLE), to += 2 * COLUMNS)
        for (int v = 0; v < COLUMNS / WIDTH; v++) {
            Bits both = nibbles(w, v * WIDTH);
            keep(to + v * WIDTH, rounded(looked_up(of->table, both) * scales[v] + zeros[v]));
            keep(to + COLUMNS + v * WIDTH, rounded(looked_up(of->table, both >> 8) * scales[v] + zeros[v]));
        }
}

#ifdef __AVX512BW__

/* FOUR pairs of a compact block. */
INLINE void spread_four(const char *w, const uint8_t *highs, float *to) {
    __m512i numbers[2], table = highs_of(highs);
    for (int t = 0; t < FOUR * VECTORS / 2; t++) {
        compact_two(w, t, table, numbers);
        for (int i = 0; i < 2; i++) {
            int v = 2 * t + i;
            spread((const char *)(numbers + i), to + v / VECTORS * 2 * COLUMNS + v % VECTORS * LANES);
        }
    }
}

#elif defined(__AVX2__)

/* What compact_two() does, two lanes at a time. */
INLINE void spread_four(const char *w, const uint8_t *highs, float *to) {
    __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)highs));
    for (int t = 0; t < FOUR * VECTORS / 2; t++)
        for (int j = 0; j < LANES; j += WIDTH) {
            __m256i low = _mm256_loadu_si256((const __m256i *)(w + t * 4 * LANES + 4 * j));
            __m256i which = _mm256_loadu_si256((const __m256i *)(w + FOUR * 2 * COLUMNS + t / 2 * 4 * LANES + 4 * j));
            if (t % 2) which = _mm256_srli_epi16(which, 4);
            __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(which, _mm256_set1_epi8(15)));
            __m256i numbers[2] = {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
            for (int i = 0; i < 2; i++) {
                float *own = to + (2 * t + i) / VECTORS * 2 * COLUMNS + (2 * t + i) % VECTORS * LANES + j;
                keep(own, (Vector)((Bits)numbers[i] << 16));
                keep(own + COLUMNS, (Vector)((Bits)numbers[i] & 0xffff0000u));
            }
        }
}

#else

typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

/* Of 16 bytes those with these numbers, below 16. */
INLINE u8x16 looked_up_bytes(u8x16 table, u8x16 which) {
#if defined(__SSSE3__)
    return (u8x16)_mm_shuffle_epi8((__m128i)table, (__m128i)which);
#elif defined(__aarch64__)
    return (u8x16)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)which);
#else
    u8x16 found;
    for (int i = 0; i < 16; i++) found[i] = table[which[i]];
    return found;
#endif
}

/* Two inputs of 4 outputs. */
INLINE void spread_lane(u8x16 numbers, float *to) {
    u32x4 both = (u32x4)numbers, first = both << 16, second = both & 0xffff0000u;
    memcpy(to, &first, sizeof first), memcpy(to + COLUMNS, &second, sizeof second);
}

/* What compact_two() does, lane by lane. */
INLINE void spread_four(const char *w, const uint8_t *highs, float *to) {
    u8x16 table, low, which;
    memcpy(&table, highs, sizeof table);
    for (int t = 0; t < FOUR * VECTORS / 2; t++)
        for (int lane = 0; lane < 4; lane++) {
            memcpy(&low, w + t * 4 * LANES + lane * 16, sizeof low);
            memcpy(&which, w + FOUR * 2 * COLUMNS + t / 2 * 4 * LANES + lane * 16, sizeof which);
            u8x16 high = looked_up_bytes(table, (t % 2 ? which >> 4 : which) & 15);
            u8x16 numbers[2] = {
                __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
            };
            for (int i = 0; i < 2; i++) {
                int v = 2 * t + i;
                spread_lane(numbers[i], to + v / VECTORS * 2 * COLUMNS + v % VECTORS * LANES + lane * 4);
            }
        }
}

#endif

/* The next ``count`` pairs of inputs become floats, [2 count, COLUMNS]. Returns what was fetched up to. */
INLINE const char *unpack_as(const Form form, Way *at, int64_t count, float *to, const char *ahead, int64_t lines) {
    const Product *of = at->of->of;
    int64_t until = at->pair + count, begun = at->pair, step = form == COMPACT ? FOUR : 1;
    float *next = to;
    for (; at->pair < until; at->pair += step, at->w += step * stride(form), next += step * 2 * COLUMNS) {
        if ((at->pair - begun) % (STEPS / 2) == 0) ahead = fetch_lines(ahead, lines);
        if (form == COMPACT) spread_four(at->w, of->highs + at->block * HIGHS, next);
        else if (form == BYTE) spread_bytes(at->w, next);
        else spread_pair(at->w, next);
    }
    for (; form == COMPACT && *at->other < until; at->other++, at->whole += stride(BF16))
        spread_pair(at->whole, to + (*at->other - begun) * 2 * COLUMNS);
    return ahead;
}

/* The same of nibbles, group by group. */
static const char *unpack_nibbles(Way *at, int64_t count, float *to, const char *ahead, int64_t lines) {
    const Product *of = at->of->of;
    int64_t shared = of->group / 2, groups = of->d_in / of->group, until = at->pair + count;
    while (at->pair < until) {
        int64_t group = at->pair / shared, end = (group + 1) * shared < until ? (group + 1) * shared : until;
        int64_t pairs = end - at->pair;
        spread_nibbles(of, at->w, at->block * groups + group, pairs, to);
        ahead = fetch_lines(ahead, lines * ceiling(pairs, STEPS / 2));
        at->pair = end, at->w += pairs * stride(NIBBLE), to += pairs * 2 * COLUMNS;
    }
    return ahead;
}

static const char *unpack(Way *at, int64_t count, float *to, const char *ahead, int64_t lines) {
    switch (at->of->form) {
    case COMPACT: return unpack_as(COMPACT, at, count, to, ahead, lines);
    case BYTE: return unpack_as(BYTE, at, count, to, ahead, lines);
    case NIBBLE: return unpack_nibbles(at, count, to, ahead, lines);
    default: return unpack_as(BF16, at, count, to, ahead, lines);
    }
}

/* Of DEPTH inputs or what is left of them. */
typedef struct {
    const float *w;
    int64_t depth, x_row;
    int first; /* whether nothing was summed before */
} Part;

/* The products of ``n`` rows with a part of a block. */
INLINE const char *
tile_of(const Part *part, const float *x, float *sums, const char *ahead, int64_t lines, const int n) {
    for (int j = 0; j < COLUMNS; j += BESIDE * WIDTH) {
        Vector s[TILE][BESIDE];
        for (int i = 0; i < n; i++)
            for (int v = 0; v < BESIDE; v++)
                s[i][v] = part->first ? (Vector){0} : load(sums + i * COLUMNS + j + v * WIDTH);
        for (int64_t from = 0; from < part->depth; from += STEPS) {
            int64_t to = from + STEPS < part->depth ? from + STEPS : part->depth;
            if (j == 0) ahead = fetch_lines(ahead, lines);
            for (int64_t k = from; k < to; k++) {
                Vector w[BESIDE];
                for (int v = 0; v < BESIDE; v++) w[v] = load(part->w + k * COLUMNS + j + v * WIDTH);
                for (int i = 0; i < n; i++)
                    for (int v = 0; v < BESIDE; v++) s[i][v] += x[i * part->x_row + k] * w[v];
            }
        }
        for (int i = 0; i < n; i++)
            for (int v = 0; v < BESIDE; v++) keep(sums + i * COLUMNS + j + v * WIDTH, s[i][v]);
    }
    return ahead;
}

static const char *tile(const Part *part, const float *x, float *sums, const char *ahead, int64_t lines, int64_t n) {
    switch (n) {
    case 1: return tile_of(part, x, sums, ahead, lines, 1);
    case 2: return tile_of(part, x, sums, ahead, lines, 2);
    case 3: return tile_of(part, x, sums, ahead, lines, 3);
    case 4: return tile_of(part, x, sums, ahead, lines, 4);
#if TILE > 5
    case 5: return tile_of(part, x, sums, ahead, lines, 5);
#endif
#if TILE > 6
    case 6: return tile_of(part, x, sums, ahead, lines, 6);
    case 7: return tile_of(part, x, sums, ahead, lines, 7);
#endif
    default: return tile_of(part, x, sums, ahead, lines, TILE);
    }
}

/* Rows ``from`` to ``to`` with a block. */
static void multiply(const Linear *s, int64_t from, int64_t to, int64_t block, Block next, char *room) {
    Desk at = desk(s, room);
    Way way = way_to(s, block);
    int64_t d_in = s->of->d_in, rows = to - from;
    int64_t times = ceiling(d_in, DEPTH) * ceiling(DEPTH, STEPS) * (1 + ceiling(rows, TILE));
    int64_t lines = next.of ? ceiling(ceiling(size_of(next.of), 64), times) : 0;
    const char *ahead = next.of ? next.of->w + next.block * size_of(next.of) : way.w;
    if (next.of && next.of->highs) fetch_rest(next.of, next.block);
    for (int64_t k = 0; k < d_in; k += DEPTH) {
        Part part = {at.w, d_in - k < DEPTH ? d_in - k : DEPTH, apart(d_in), k == 0};
        ahead = unpack(&way, part.depth / 2, at.w, ahead, lines);
        for (int64_t row = 0; row < rows; row += TILE)
            ahead = tile(&part, at.x + row * apart(d_in) + k, at.sums + row * COLUMNS, ahead, lines, rows - row);
    }
    for (int64_t row = 0; row < rows; row++)
        for (int j = 0; j < COLUMNS; j += WIDTH)
            store(s, load(at.sums + row * COLUMNS + j), from + row, block * COLUMNS + j);
}
