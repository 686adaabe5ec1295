/* A bf16 weight in 12 bits for each number, and back, to the bit.

   The high byte of a bf16 is its sign and seven bits of its exponent, and a trained weight's numbers have few: of a
   block's 16 commonest ones a number tells which it has, in four bits beside its low byte. Where a number of a pair of
   inputs has another one, all of the block's numbers of that pair stand beside the rest as they are (``others``). */

#include "forms.h"
#include "product.h"
#include "tape.h"

#define PAIR (2 * COLUMNS)         /* numbers of a block for two inputs */
#define SIZE (FOUR * PAIR * 3 / 2) /* bytes of four such pairs */
#define KINDS 256                  /* high bytes that there are */
#define NONE HIGHS
#define NOT_A_NUMBER 0x7fc0

/* Where number ``i`` of pair ``l`` of four lies (forms.h, compact_two). */
typedef struct {
    int64_t low, which, shift;
} Place;

INLINE Place place_of(int64_t l, int64_t i) {
    int64_t v = l * VECTORS + i / (2 * LANES), n = i % (2 * LANES), t = v / 2;
    int64_t at = n / 8 * 16 + v % 2 * 8 + n % 8;
    return (Place){t * 4 * LANES + at, FOUR * PAIR + t / 2 * 4 * LANES + at, t % 2 * 4};
}

typedef struct {
    const bf16 *weight; /* [d_out, d_in] */
    int64_t d_out, d_in;
    uint8_t *highs; /* [blocks, HIGHS] */
    int32_t *first; /* while they are counted, those of each block behind it */
    int32_t *others;
    char *w, *whole;
} Packing;

/* Numbers of output ``c`` of a block, or NULL beyond the last one. */
INLINE const bf16 *output(const Packing *s, int64_t block, int64_t c) {
    int64_t n = block * COLUMNS + c;
    return n < s->d_out ? s->weight + n * s->d_in : NULL;
}

/* The 16 commonest high bytes, the lower one first among equals. */
static void choose(const Packing *s, int64_t block, uint8_t *highs) {
    int64_t counts[KINDS] = {0};
    for (int64_t c = 0; c < COLUMNS; c++) {
        const bf16 *from = output(s, block, c);
        if (from)
            for (int64_t k = 0; k < s->d_in; k++) counts[from[k] >> 8]++;
        else counts[0] += s->d_in;
    }
    for (int i = 0; i < HIGHS; i++) {
        int best = 0;
        for (int high = 1; high < KINDS; high++)
            if (counts[high] > counts[best]) best = high;
        highs[i] = (uint8_t)best, counts[best] = -1;
    }
}

/* Which of a block's high bytes each is, or NONE. */
static void numbers_of(const uint8_t *highs, uint8_t *number) {
    memset(number, NONE, KINDS);
    for (int i = 0; i < HIGHS; i++) number[highs[i]] = (uint8_t)i;
}

/* 1 for each pair of inputs that has another high byte; how many they are. */
static int32_t find_others(const Packing *s, int64_t block, const uint8_t *number, char *is_other) {
    int32_t count = 0;
    memset(is_other, 0, s->d_in / 2);
    for (int64_t c = 0; c < COLUMNS; c++) {
        const bf16 *from = output(s, block, c);
        if (!from && number[0] == NONE) memset(is_other, 1, s->d_in / 2);
        for (int64_t k = 0; from && k < s->d_in; k++) is_other[k / 2] |= number[from[k] >> 8] == NONE;
    }
    for (int64_t k = 0; k < s->d_in / 2; k++) count += is_other[k];
    return count;
}

static int64_t blocks_of(int64_t d_out) { return (d_out + COLUMNS - 1) / COLUMNS; }

static void count(Team *team, const void *told) {
    const Packing *s = told;
    int64_t blocks = blocks_of(s->d_out), block;
    char is_other[s->d_in / 2];
    uint8_t number[KINDS];
    while ((block = take(team, blocks)) >= 0) {
        choose(s, block, s->highs + block * HIGHS);
        numbers_of(s->highs + block * HIGHS, number);
        s->first[block + 1] = find_others(s, block, number, is_other);
    }
    finish(team, blocks);
}

/* One number of a block to its place. */
INLINE void put(char *w, int64_t k, int64_t i, bf16 x, const uint8_t *number) {
    char *four = w + k / FOUR * SIZE;
    Place at = place_of(k % FOUR, i);
    four[at.low] = (char)x;
    four[at.which] |= (char)((number[x >> 8] & 15) << at.shift);
}

static void fill(Team *team, const void *told) {
    const Packing *s = told;
    int64_t blocks = blocks_of(s->d_out), pairs = s->d_in / 2, size = pairs / FOUR * SIZE, block;
    char is_other[pairs];
    uint8_t number[KINDS];
    while ((block = take(team, blocks)) >= 0) {
        char *w = s->w + block * size;
        int32_t *other = s->others + s->first[block] + block;
        bf16 *whole = (bf16 *)s->whole + s->first[block] * PAIR;
        numbers_of(s->highs + block * HIGHS, number);
        find_others(s, block, number, is_other);
        memset(w, 0, size);
        for (int64_t c = 0; c < COLUMNS; c++) {
            const bf16 *from = output(s, block, c);
            for (int64_t k = 0; k < s->d_in; k++) put(w, k / 2, 2 * c + k % 2, from ? from[k] : 0, number);
        }
        for (int64_t k = 0; k < pairs; k++) {
            if (!is_other[k]) continue;
            for (int64_t c = 0; c < COLUMNS; c++, whole += 2) {
                const bf16 *from = output(s, block, c);
                whole[0] = from ? from[2 * k] : 0, whole[1] = from ? from[2 * k + 1] : 0;
            }
            *other++ = (int32_t)k;
        }
        *other = (int32_t)pairs;
    }
    finish(team, blocks);
}

/* Chooses each block's high bytes, and counts its ``others`` into ``first`` [blocks + 1]; how many they are in all. */
int64_t umbel_count_others(
    const bf16 *weight, int64_t d_out, int64_t d_in, uint8_t *highs, int32_t *first, int threads
) {
    Packing s = {weight, d_out, d_in, highs, first, 0, 0, 0};
    int64_t blocks = blocks_of(d_out);
    umbel_in_team(count, &s, threads);
    first[0] = 0;
    for (int64_t block = 0; block < blocks; block++) first[block + 1] += first[block];
    return first[blocks];
}

/* Fills what ``to`` points to; its ``highs`` and ``first`` are known. */
void umbel_compact(const bf16 *weight, const Product *to, int threads) {
    Packing s = {weight, to->d_out, to->d_in, (uint8_t *)to->highs, (int32_t *)to->first,
                 (int32_t *)to->others, (char *)to->w, (char *)to->whole};
    umbel_in_team(fill, &s, threads);
}

INLINE const char *block_at(const Product *of, int64_t n) {
    return of->w + n / COLUMNS * (of->d_in / (2 * FOUR)) * SIZE;
}

/* Where an output's first number of each of four pairs lies; the second lies behind it. */
INLINE void places_of(int64_t n, Place *at) {
    for (int64_t l = 0; l < FOUR; l++) at[l] = place_of(l, n % COLUMNS * 2);
}

/* The lines that ``row`` will read: they lie apart, so that no processor sees them coming. */
static void fetch_row(const Product *of, int64_t n) {
    Place at[FOUR];
    places_of(n, at);
    const char *four = block_at(of, n);
    for (int64_t k = 0; k < of->d_in; k += 2 * FOUR, four += SIZE)
        for (int l = 0; l < FOUR; l++) __builtin_prefetch(four + at[l].low), __builtin_prefetch(four + at[l].which);
}

static void row(const Product *of, int64_t n, bf16 *found) {
    Place at[FOUR];
    places_of(n, at);
    int64_t block = n / COLUMNS, pairs = of->d_in / 2;
    const char *four = block_at(of, n);
    const uint8_t *highs = of->highs + block * HIGHS;
    for (int64_t k = 0; k < of->d_in; k += 2 * FOUR, four += SIZE)
        for (int l = 0; l < FOUR; l++) {
            const uint8_t *low = (const uint8_t *)four + at[l].low, *which = (const uint8_t *)four + at[l].which;
            for (int i = 0; i < 2; i++)
                found[k + 2 * l + i] = (bf16)(highs[which[i] >> at[l].shift & 15] << 8 | low[i]);
        }
    const int32_t *other = of->others + of->first[block] + block;
    const bf16 *whole = (const bf16 *)of->whole + of->first[block] * PAIR + n % COLUMNS * 2;
    for (; *other < pairs; other++, whole += PAIR) memcpy(found + 2 * *other, whole, 2 * sizeof(bf16));
}

/* Embeddings: a table of their own, or the weight of an lm_head that is tied to them. */
typedef struct {
    const Product *of; /* that weight, or NULL */
    const bf16 *table; /* [vocabulary, width] then */
    bf16 *x;           /* [tokens, width] */
    int64_t width, vocabulary;
} Embed;

static void fetch_embedding(const Embed *t, int64_t token) {
    if (t->of && t->of->highs && token >= 0 && token < t->vocabulary) fetch_row(t->of, token);
}

/* A token that there is none of is not a number. */
static void embedding(const Embed *t, int64_t token, bf16 *x) {
    if (token < 0 || token >= t->vocabulary) {
        for (int64_t i = 0; i < t->width; i++) x[i] = NOT_A_NUMBER;
    } else if (!t->of) {
        memcpy(x, t->table + token * t->width, t->width * sizeof(bf16));
    } else if (t->of->highs) {
        row(t->of, token, x);
    } else {
        const bf16 *pair = (const bf16 *)t->of->w + token / COLUMNS * (t->width / 2) * PAIR + token % COLUMNS * 2;
        for (int64_t k = 0; k < t->width; k += 2, pair += PAIR) memcpy(x + k, pair, 2 * sizeof(bf16));
    }
}

/* A thread takes a task before it has done the one before, so that it knows what to fetch. */
static void embeddings(Team *team, const Embed *t, const int64_t *tokens, int64_t count) {
    int64_t next;
    for (int64_t task = take(team, count); task >= 0; task = next) {
        next = take(team, count);
        if (next >= 0) fetch_embedding(t, tokens[next]);
        embedding(t, tokens[task], t->x + task * t->width);
    }
    finish(team, count);
}

void umbel_tape_embed(const Now *now, const void *told, Team *team) { embeddings(team, told, now->tokens, now->rows); }

typedef struct {
    Embed embed;
    const int64_t *outputs;
    int64_t count;
} Rows;

static void rows(Team *team, const void *told) {
    const Rows *s = told;
    embeddings(team, &s->embed, s->outputs, s->count);
}

/* The weights of these output features, as they were; 0 where one of them is none, and nothing is read. */
int umbel_compact_rows(const Product *of, const int64_t *outputs, int64_t count, bf16 *found, int threads) {
    Rows s = {{of, 0, found, of->d_in, of->d_out}, outputs, count};
    for (int64_t i = 0; i < count; i++)
        if (outputs[i] < 0 || outputs[i] >= of->d_out) return 0;
    umbel_in_team(rows, &s, threads);
    return 1;
}
