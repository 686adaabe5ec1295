/* Low-rank corrections at one site for all rows of a step, whatever adapters and ranks they have:

       LoRA         y = y + (x A^T) B
       DoRA         y = b + m (y - b + (x A^T) B)
       bottleneck   y = y + f(x A^T + a) B + c          x may be y itself: all of it is read before any is written

   A row's sums have one order, whatever stands beside it. Every adapter's weights are read once in a step, from where
   they lie; nothing is gathered, filled up or copied. They come from memory, in pieces too short for the processor to
   guess the next one, so each task fetches what a later one will read. */

#include "shuffles.h"
#include "tape.h"

typedef struct {
    const bf16 *b; /* blocks of [rank, block], one after another */
    int64_t from;  /* first of its columns of x A^T */
    int64_t rank;
    int64_t column; /* first of its columns of y */
    int64_t width;
    int64_t block;
} Segment;

#define SEGMENTS 3

typedef struct {
    const bf16 *a; /* [rank, d] */
    int64_t rank;  /* of all segments together; 0: this site is not adapted */
    int64_t first; /* of its rows in ``rows`` */
    int64_t count;
    Segment segments[SEGMENTS]; /* rank 0: none */
    const float *scale[SEGMENTS]; /* DoRA's m, one for each column of the segment; NULL: plain LoRA */
    const bf16 *inner; /* a, one for each rank, or NULL */
    const bf16 *outer; /* c, one for each column of y, or NULL; not beside m */
    int64_t activation;
} Group;

typedef struct {
    const bf16 *x;
    int64_t x_stride, d;
    bf16 *y;
    int64_t y_stride;
    const bf16 *bias; /* of the site's linear, or NULL */
    const int32_t *rows;
    float *h; /* [all rows, most] */
    int64_t most;
} Site;

enum { NONE, RELU, GELU, SILU };

#define RANKS 4
#define ROWS 4
#if REGISTERS == 32
#define FEW 4 /* rows whose sums with RANKS ranks fill the registers */
#else
#define FEW 2
#endif
#define COLUMNS 64
#define FAR 2 /* tasks between fetching and reading columns */

/* f(x + bias) of one number; NaN stays NaN. */
static float activated(const Group *g, int64_t rank, float x) {
    if (g->inner) x += wide(g->inner[rank]);
    switch (g->activation) {
    case RELU: return x < 0.0f ? 0.0f : x;
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case SILU: return x / (1.0f + expf(-x));
    default: return x;
    }
}

/* What a later task will read of A: ``m`` ranks, one after another, of which ``k`` numbers each were fetched. */
INLINE void fetch_ranks(const bf16 *later, int64_t k, const int m) {
    if (!later || k % LINE) return;
    for (int j = 0; j < m; j++) __builtin_prefetch(later + m * k + j * LINE);
}

/* ``n`` rows times ``m`` ranks of x A^T, activated. */
INLINE void down(
    const Site *s, const Group *g, int64_t row, int64_t rank, const bf16 *later, const int n, const int m
) {
    const bf16 *x[FEW], *a[RANKS];
    Vector sums[FEW][RANKS];
    for (int i = 0; i < n; i++) x[i] = s->x + s->rows[g->first + row + i] * s->x_stride;
    for (int j = 0; j < m; j++) a[j] = g->a + (rank + j) * s->d;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) sums[i][j] = all(0.0f);
    int64_t k = 0;
#ifdef __AVX512BF16__
    for (; k + 2 * WIDTH <= s->d; k += 2 * WIDTH) {
        fetch_ranks(later, k, m);
        __m512bh xs[FEW];
        for (int i = 0; i < n; i++) xs[i] = (__m512bh)_mm512_loadu_si512(x[i] + k);
        for (int j = 0; j < m; j++) {
            __m512bh as = (__m512bh)_mm512_loadu_si512(a[j] + k);
            for (int i = 0; i < n; i++) sums[i][j] = (Vector)_mm512_dpbf16_ps((__m512)sums[i][j], xs[i], as);
        }
    }
#else
    for (; k + 2 * WIDTH <= s->d; k += 2 * WIDTH) {
        fetch_ranks(later, k, m);
        Vector xs[FEW][2], as[2];
        for (int i = 0; i < n; i++) evens_and_odds(x[i] + k, xs[i]);
        for (int j = 0; j < m; j++) {
            evens_and_odds(a[j] + k, as);
            for (int i = 0; i < n; i++) {
                sums[i][j] += xs[i][0] * as[0];
                sums[i][j] += xs[i][1] * as[1];
            }
        }
    }
#endif
    for (; k + WIDTH <= s->d; k += WIDTH) {
        fetch_ranks(later, k, m);
        Vector xs[FEW];
        for (int i = 0; i < n; i++) xs[i] = wides(x[i] + k);
        for (int j = 0; j < m; j++) {
            Vector as = wides(a[j] + k);
            for (int i = 0; i < n; i++) sums[i][j] += xs[i] * as;
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            float sum = sum_of(sums[i][j]);
            for (int64_t l = k; l < s->d; l++) sum += wide(x[i][l]) * wide(a[j][l]);
            s->h[(g->first + row + i) * s->most + rank + j] = activated(g, rank + j, sum);
        }
}

INLINE void downs(const Site *s, const Group *g, int64_t rank, const bf16 *later, const int m) {
    int64_t row = 0;
    for (; row + FEW <= g->count; row += FEW, later = NULL) down(s, g, row, rank, later, FEW, m);
    for (; row < g->count; row++, later = NULL) down(s, g, row, rank, later, 1, m);
}

/* One number of y; ``delta`` is its row of x A^T times its column of B. */
INLINE float changed(float y, float delta, const float *scale, int64_t at, float bias) {
    return scale ? bias + scale[at] * (y - bias + delta) : y + delta;
}

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE const bf16 *columns_of(const Segment *t, int64_t column) {
    return t->b + column / t->block * t->rank * t->block + column % t->block;
}

/* Up to ``COLUMNS`` columns of a segment, within one of its blocks. */
typedef struct {
    const Group *group;
    int64_t segment, column, end;
} Tile;

/* What a later task will read of B: one rank of its columns. */
INLINE void fetch_columns(const Tile *later, int64_t rank) {
    const Segment *t = later->group->segments + later->segment;
    if (rank >= t->rank) return;
    const bf16 *columns = columns_of(t, later->column) + rank * t->block;
    for (int ahead = 0; ahead < COLUMNS; ahead += LINE) __builtin_prefetch(columns + ahead);
}

/* ``n`` rows times ``v`` vectors of columns, from ``column`` of the segment on; all of them within one block. */
INLINE void up(
    const Site *s, const Group *g, const Segment *t, const float *scale, int64_t row, int64_t column, const Tile *later,
    const int n, const int v
) {
    Vector sums[ROWS][ABREAST];
    const float *h[ROWS];
    const bf16 *b = columns_of(t, column);
    const bf16 *outer = g->outer ? g->outer + t->column + column : NULL;
    for (int i = 0; i < n; i++) {
        h[i] = s->h + (g->first + row + i) * s->most + t->from;
        for (int j = 0; j < v; j++) sums[i][j] = outer ? wides(outer + j * WIDTH) : all(0.0f);
    }
    for (int64_t r = 0; r < t->rank; r++, b += t->block) {
        if (later) fetch_columns(later, r);
        Vector bs[ABREAST];
        for (int j = 0; j < v; j++) bs[j] = wides(b + j * WIDTH);
        for (int i = 0; i < n; i++) {
            Vector hs = all(h[i][r]);
            for (int j = 0; j < v; j++) sums[i][j] += hs * bs[j];
        }
    }
    for (int i = 0; i < n; i++) {
        bf16 *y = s->y + s->rows[g->first + row + i] * s->y_stride + t->column + column;
        for (int j = 0; j < v; j++) {
            Vector old = wides(y + j * WIDTH), new = old + sums[i][j];
            if (scale) {
                Vector bias = s->bias ? wides(s->bias + t->column + column + j * WIDTH) : all(0.0f);
                new = bias + load(scale + column + j * WIDTH) * (old - bias + sums[i][j]);
            }
            narrows(y + j * WIDTH, new);
        }
    }
}

INLINE void ups(
    const Site *s, const Group *g, const Segment *t, const float *scale, int64_t column, const Tile *later, const int v
) {
    int64_t row = 0;
    for (; row + ROWS <= g->count; row += ROWS, later = NULL) up(s, g, t, scale, row, column, later, ROWS, v);
    for (; row < g->count; row++, later = NULL) up(s, g, t, scale, row, column, later, 1, v);
}

/* Columns that do not fill a vector. */
static void rest(const Site *s, const Group *g, const Segment *t, const float *scale, int64_t column, int64_t end) {
    for (int64_t row = g->first; row < g->first + g->count; row++) {
        const float *h = s->h + row * s->most + t->from;
        bf16 *y = s->y + s->rows[row] * s->y_stride + t->column;
        for (int64_t c = column; c < end; c++) {
            const bf16 *b = columns_of(t, c);
            float delta = g->outer ? wide(g->outer[t->column + c]) : 0.0f;
            float bias = s->bias ? wide(s->bias[t->column + c]) : 0.0f;
            for (int64_t r = 0; r < t->rank; r++) delta += h[r] * wide(b[r * t->block]);
            y[c] = narrow(changed(wide(y[c]), delta, scale, c, bias));
        }
    }
}

/* What one thread does at a site: a stretch of all its tasks, of as much work as every other thread's. A task is RANKS
   ranks of a group, or a tile of one of its segments; those of a stretch lie one after another in memory. */
typedef struct {
    const Group *groups;
    int64_t parts;            /* of a group: 1, or SEGMENTS where tasks are tiles */
    int64_t place, places;    /* a part of a group; from ``places`` on there is none */
    int64_t at, until;        /* of its tasks */
    int64_t from, to, before; /* of all work, and what stands before the next place */
} Tasks;

static const Group *group_of(const Tasks *t) { return t->groups + t->place / t->parts; }

static const Segment *segment_of(const Tasks *t) { return group_of(t)->segments + t->place % t->parts; }

static int64_t tiles_of_block(const Segment *t) { return ceiling(t->block, COLUMNS); }

static int64_t tasks_of(const Tasks *t) {
    const Group *g = group_of(t);
    if (t->parts == 1) return ceiling(g->rank, RANKS);
    const Segment *s = segment_of(t);
    return g->rank && s->rank ? s->width / s->block * tiles_of_block(s) : 0;
}

/* Multiply-adds with one weight, which counts as ``ROWS`` of them at least: it has to be read. */
static int64_t rows_of(const Group *g) { return g->count < ROWS ? ROWS : g->count; }

/* Of one task. */
static int64_t work_of(const Tasks *t) { return rows_of(group_of(t)) * (t->parts == 1 ? 1 : segment_of(t)->rank); }

static int64_t tasks_within(int64_t work, int64_t of_one, int64_t tasks) {
    return work <= 0 ? 0 : min(ceiling(work, of_one), tasks);
}

static Tasks next(Tasks t) {
    t.at++;
    while (t.at >= t.until && ++t.place < t.places) {
        int64_t tasks = tasks_of(&t), work = tasks ? work_of(&t) : 0;
        t.at = tasks ? tasks_within(t.from - t.before, work, tasks) : 0;
        t.until = tasks ? tasks_within(t.to - t.before, work, tasks) : 0;
        t.before += tasks * work;
    }
    return t;
}

static Tasks first(const Group *groups, int64_t count, int64_t parts, int me, int threads) {
    Tasks t = {groups, parts, 0, count * parts, 0, 0, 0, 0, 0};
    int64_t all = 0;
    for (; t.place < t.places; t.place++) {
        int64_t tasks = tasks_of(&t);
        if (tasks) all += tasks * work_of(&t);
    }
    t.place = -1, t.from = all * me / threads, t.to = all * (me + 1) / threads;
    return next(t);
}

static int done(const Tasks *t) { return t->place >= t->places; }

static Tile tile_of(const Tasks *t) {
    const Segment *s = segment_of(t);
    int64_t each = tiles_of_block(s), from = t->at / each * s->block;
    int64_t column = from + t->at % each * COLUMNS;
    return (Tile){group_of(t), t->place % t->parts, column, min(column + COLUMNS, from + s->block)};
}

static void tile(const Site *s, const Tile *task, const Tile *later) {
    const Group *g = task->group;
    const Segment *t = g->segments + task->segment;
    const float *scale = g->scale[task->segment];
    int64_t column = task->column, end = task->end;
    if (end - column == COLUMNS)
        for (; column < end; column += ABREAST * WIDTH, later = NULL) ups(s, g, t, scale, column, later, ABREAST);
    for (; column + WIDTH <= end; column += WIDTH) ups(s, g, t, scale, column, NULL, 1);
    if (column < end) rest(s, g, t, scale, column, end);
}

/* Of a site. */
static int64_t work(const Site *s, const Group *groups, int64_t count) {
    int64_t sum = 0;
    for (const Group *g = groups; g < groups + count; g++) {
        int64_t weights = g->rank * s->d;
        for (int i = 0; i < SEGMENTS; i++) weights += g->segments[i].rank * g->segments[i].width;
        sum += g->rank ? rows_of(g) * weights : 0;
    }
    return sum;
}

/* Work that is worth waking another thread for. */
#define SMALL (1 << 18)

typedef struct {
    const Site *site;
    const Group *groups;
    int64_t count;
    const bf16 *bias;
} Told;

static void all_downs(const Site *s, Tasks task) {
    for (Tasks later; !done(&task); task = later) {
        const Group *g = group_of(&task);
        int64_t rank = task.at * RANKS;
        later = next(task);
        const bf16 *fetched = done(&later) ? NULL : group_of(&later)->a + later.at * RANKS * s->d;
        if (rank + RANKS <= g->rank) downs(s, g, rank, fetched, RANKS);
        else
            for (; rank < g->rank; rank++) downs(s, g, rank, NULL, 1);
    }
}

/* What all_ups reads before it fetches. */
static void fetch_first(Tasks later) {
    for (int i = 0; i < FAR && !done(&later); i++, later = next(later)) {
        Tile then = tile_of(&later);
        for (int64_t rank = 0; rank < segment_of(&later)->rank; rank++) fetch_columns(&then, rank);
    }
}

static void all_ups(const Site *s, Tasks task) {
    Tasks later = task;
    for (int i = 0; i < FAR && !done(&later); i++) later = next(later);
    for (; !done(&task); task = next(task)) {
        Tile now = tile_of(&task), then = done(&later) ? now : tile_of(&later);
        tile(s, &now, done(&later) ? NULL : &then);
        if (!done(&later)) later = next(later);
    }
}

/* Each thread has a stretch of all that is to do, or one thread has all of it. */
static void lora(Team *team, const void *told) {
    const Told *t = told;
    const Site *s = t->site;
    const Group *groups = t->groups;
    int64_t count = t->count, stretch;
    int stretches = work(s, groups, count) > SMALL ? team->threads : 1;
    while ((stretch = take(team, stretches)) >= 0) all_downs(s, first(groups, count, 1, stretch, stretches));
    if (team->me < stretches) fetch_first(first(groups, count, SEGMENTS, team->me, stretches));
    finish(team, stretches);
    while ((stretch = take(team, stretches)) >= 0) all_ups(s, first(groups, count, SEGMENTS, stretch, stretches));
    finish(team, stretches);
}

void umbel_lora(const Site *s, const Group *groups, int64_t count, int threads) {
    Told t = {s, groups, count, NULL};
    umbel_in_team(lora, &t, threads);
}

void umbel_tape_lora(const Now *now, const void *told, Team *team) {
    Told t = *(const Told *)told;
    Site s = *t.site;
    s.bias = t.bias, t.site = &s;
    lora(team, &t);
    (void)now;
}
