/* A block times rows where the processor does not multiply bf16: in fp32.

   A block becomes floats in the nearest cache, DEPTH inputs at a time, whatever form it has, and all rows are multiplied
   with them there; their sums wait in the cache for the inputs that follow. A thread's rows become floats once for each
   linear. */

#include "linear.h"

#ifdef __AVX512F__ /* rows, and vectors of a block, whose sums fill the registers */
#define TILE 8
#define ABREAST 3
#else
#define TILE 6
#define ABREAST 1
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

INLINE f32x16 load(const float *p) {
    f32x16 x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void keep(float *p, f32x16 x) { memcpy(p, &x, sizeof x); }

/* Rows ``from`` to ``to`` become floats. */
static void prepare(const Linear *s, int64_t from, int64_t to, char *room) {
    int64_t d_in = s->of->d_in;
    float *x = desk(s, room).x;
    for (int64_t row = from; row < to; row++, x += apart(d_in)) {
        const bf16 *given = s->of->x + row * d_in;
        int64_t k = 0;
        for (; k + LANES <= d_in; k += LANES) keep(x + k, wide16(given + k));
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
    f32x16 inputs[2];
    evens_and_odds((const bf16 *)numbers, inputs);
    keep(to, inputs[0]), keep(to + COLUMNS, inputs[1]);
}

INLINE void spread_pair(const char *w, float *to) {
    for (int j = 0; j < VECTORS; j++) spread(w + j * 4 * LANES, to + j * LANES);
}

INLINE void spread_bytes(const char *w, float *to) {
    for (int j = 0; j < VECTORS; j++, w += 2 * LANES, to += LANES) {
        u16x16 both;
        memcpy(&both, w, sizeof both);
        i32x16 each = (i32x16)__builtin_convertvector(both, u32x16);
        keep(to, __builtin_convertvector(each << 24 >> 24, f32x16));
        keep(to + COLUMNS, __builtin_convertvector(each << 16 >> 24, f32x16));
    }
}

/* Of bf16, as the other forms hold it; none of these is NaN. */
INLINE f32x16 rounded(f32x16 x) {
    u32x16 bits = (u32x16)x;
    return (f32x16)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

/* What 16 numbers below 16 stand for. */
INLINE f32x16 looked_up(const float *table, u32x16 which) {
#ifdef __AVX512F__
    return (f32x16)_mm512_permutexvar_ps((__m512i)which, _mm512_loadu_ps(table));
#endif
    f32x16 found;
    for (int i = 0; i < LANES; i++) found[i] = table[which[i] & 15];
    return found;
}

/* Of 16 bytes the low nibbles are two inputs of the first 8 outputs, the high ones those of the rest. */
INLINE void spread_nibbles(const Product *of, const char *w, int64_t group, float *to) {
    for (int j = 0; j < VECTORS; j++, w += LANES, to += LANES) {
        f32x16 scale = wide16(of->scales + group * COLUMNS + j * LANES);
        f32x16 zero = of->zeros ? wide16(of->zeros + group * COLUMNS + j * LANES) : all(0.0f);
        uint16_t both[8];
        uint32_t each[LANES];
        u32x16 which;
        memcpy(both, w, sizeof both);
        for (int i = 0; i < 8; i++) each[i] = both[i], each[i + 8] = both[i] >> 4;
        memcpy(&which, each, sizeof which);
        keep(to, rounded(looked_up(of->table, which & 15) * scale + zero));
        keep(to + COLUMNS, rounded(looked_up(of->table, which >> 8 & 15) * scale + zero));
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

#else

INLINE void spread_four(const char *w, const uint8_t *highs, float *to) {
    for (int t = 0; t < FOUR * VECTORS / 2; t++) {
        const uint8_t *low = (const uint8_t *)w + t * 4 * LANES, *which = (const uint8_t *)w + FOUR * 2 * COLUMNS;
        uint16_t numbers[2][2 * LANES];
        which += t / 2 * 4 * LANES;
        for (int i = 0; i < 4 * LANES; i++) /* compact_two(), number by number */
            numbers[i / 8 % 2][i / 16 * 8 + i % 8] = (uint16_t)(highs[which[i] >> t % 2 * 4 & 15] << 8 | low[i]);
        for (int i = 0; i < 2; i++) {
            int v = 2 * t + i;
            spread((const char *)numbers[i], to + v / VECTORS * 2 * COLUMNS + v % VECTORS * LANES);
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
        else if (form == NIBBLE) {
            int64_t groups = of->d_in / of->group;
            spread_nibbles(of, at->w, at->block * groups + 2 * at->pair / of->group, next);
        } else spread_pair(at->w, next);
    }
    for (; form == COMPACT && *at->other < until; at->other++, at->whole += stride(BF16))
        spread_pair(at->whole, to + (*at->other - begun) * 2 * COLUMNS);
    return ahead;
}

static const char *unpack(Way *at, int64_t count, float *to, const char *ahead, int64_t lines) {
    switch (at->of->form) {
    case COMPACT: return unpack_as(COMPACT, at, count, to, ahead, lines);
    case BYTE: return unpack_as(BYTE, at, count, to, ahead, lines);
    case NIBBLE: return unpack_as(NIBBLE, at, count, to, ahead, lines);
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
    for (int j = 0; j < VECTORS; j += ABREAST) {
        f32x16 s[TILE][ABREAST];
        for (int i = 0; i < n; i++)
            for (int v = 0; v < ABREAST; v++)
                s[i][v] = part->first ? all(0.0f) : load(sums + i * COLUMNS + (j + v) * LANES);
        for (int64_t from = 0; from < part->depth; from += STEPS) {
            int64_t to = from + STEPS < part->depth ? from + STEPS : part->depth;
            if (j == 0) ahead = fetch_lines(ahead, lines);
            for (int64_t k = from; k < to; k++) {
                f32x16 w[ABREAST];
                for (int v = 0; v < ABREAST; v++) w[v] = load(part->w + k * COLUMNS + (j + v) * LANES);
                for (int i = 0; i < n; i++) {
                    f32x16 xs = all(x[i * part->x_row + k]);
                    for (int v = 0; v < ABREAST; v++) s[i][v] += xs * w[v];
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int v = 0; v < ABREAST; v++) keep(sums + i * COLUMNS + (j + v) * LANES, s[i][v]);
    }
    return ahead;
}

static const char *tile(const Part *part, const float *x, float *sums, const char *ahead, int64_t lines, int64_t n) {
    switch (n) {
    case 1: return tile_of(part, x, sums, ahead, lines, 1);
    case 2: return tile_of(part, x, sums, ahead, lines, 2);
    case 3: return tile_of(part, x, sums, ahead, lines, 3);
    case 4: return tile_of(part, x, sums, ahead, lines, 4);
    case 5: return tile_of(part, x, sums, ahead, lines, 5);
#if TILE == 8
    case 6: return tile_of(part, x, sums, ahead, lines, 6);
    case 7: return tile_of(part, x, sums, ahead, lines, 7);
#endif
    default: return tile_of(part, x, sums, ahead, lines, TILE);
    }
}

INLINE int64_t ceiling(int64_t x, int64_t by) { return (x + by - 1) / by; }

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
        for (int j = 0; j < VECTORS; j++)
            store(s, load(at.sums + row * COLUMNS + j * LANES), from + row, block * COLUMNS + j * LANES);
}
