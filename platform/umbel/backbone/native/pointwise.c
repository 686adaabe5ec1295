/* What stands between the linears of a layer, row by row: one pass in fp32, rounded once. */

#include "shuffles.h"
#include "tape.h"

/* Numbers that are worth the other threads. */
#define SMALL (1 << 15)

/* In how many parts so many rows are done. */
static int64_t parts_of(const Team *team, int64_t rows, int64_t width) { return rows * width > SMALL ? team->threads : 1; }

static float exp1(float x) {
    return exps(all(x))[0];
}

/* x += more, rounded once. */
static void add(bf16 *x, const bf16 *more, int64_t width) {
    int64_t c = 0;
    for (; c + WIDTH <= width; c += WIDTH) narrows(x + c, wides(x + c) + wides(more + c));
    for (; c < width; c++) x[c] = narrow(wide(x[c]) + wide(more[c]));
}

static void norm(const bf16 *from, const bf16 *weight, bf16 *to, int64_t width, float eps) {
    Vector squares = all(0.0f);
    int64_t c = 0;
    for (; c + WIDTH <= width; c += WIDTH) {
        Vector v = wides(from + c);
        squares += v * v;
    }
    float sum = sum_of(squares);
    for (int64_t l = c; l < width; l++) sum += wide(from[l]) * wide(from[l]);
    float scale = 1.0f / sqrtf(sum / (float)width + eps);
    for (c = 0; c + WIDTH <= width; c += WIDTH)
        narrows(to + c, wides(from + c) * all(scale) * wides(weight + c));
    for (; c < width; c++) to[c] = narrow(wide(from[c]) * scale * wide(weight[c]));
}

typedef struct {
    bf16 *x;
    const bf16 *more, *weight; /* each may be NULL */
    bf16 *y;
    int64_t width;
    float eps;
} Norm;

/* x += more, then y = x / sqrt(mean(x^2) + eps) * weight: what is between a block's output and the next one's input. */
static void norms(Team *team, const Norm *t, int64_t rows) {
    int64_t parts = parts_of(team, rows, t->width), part;
    while ((part = take(team, parts)) >= 0)
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
            int64_t at = row * t->width;
            if (t->more) add(t->x + at, t->more + at, t->width);
            if (t->weight) norm(t->x + at, t->weight, t->y + at, t->width, t->eps);
        }
    finish(team, parts);
}

void umbel_tape_norm(const Now *now, const void *told, Team *team) { norms(team, told, now->rows); }

typedef struct {
    Norm norm;
    int64_t rows;
} Norms;

static void norms_alone(Team *team, const void *told) { norms(team, &((const Norms *)told)->norm, ((const Norms *)told)->rows); }

void umbel_rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, int64_t rows, int64_t width, float eps, int threads) {
    Norms t = {{(bf16 *)x, NULL, weight, y, width, eps}, rows};
    umbel_in_team(norms_alone, &t, threads);
}

/* y = silu(gate) * up, where x is [rows, gate | up]. */
static void silu_row(const bf16 *gate, bf16 *to, int64_t width) {
    const bf16 *up = gate + width;
    int64_t c = 0;
    for (; c + WIDTH <= width; c += WIDTH) {
        Vector g = wides(gate + c), u = wides(up + c);
        Whole low = g < all(0.0f);
        Vector e = exps((Vector)((Bits)g | 0x80000000u)); /* e^-|g| */
        Vector top = (Vector)(((Whole)e & low) | ((Whole)all(1.0f) & ~low));
        narrows(to + c, g * u * top / (all(1.0f) + e));
    }
    for (; c < width; c++) {
        float g = wide(gate[c]), e = exp1(-fabsf(g));
        to[c] = narrow(g * wide(up[c]) * (g < 0.0f ? e : 1.0f) / (1.0f + e));
    }
}

typedef struct {
    const bf16 *x;
    bf16 *y;
    int64_t width;
} Silu;

static void silus(Team *team, const Silu *t, int64_t rows) {
    int64_t parts = parts_of(team, rows, t->width), part;
    while ((part = take(team, parts)) >= 0)
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++)
            silu_row(t->x + row * 2 * t->width, t->y + row * t->width, t->width);
    finish(team, parts);
}

void umbel_tape_silu_mul(const Now *now, const void *told, Team *team) { silus(team, told, now->rows); }

typedef struct {
    Silu silu;
    int64_t rows;
} Silus;

static void silus_alone(Team *team, const void *told) { silus(team, &((const Silus *)told)->silu, ((const Silus *)told)->rows); }

void umbel_silu_mul(const bf16 *x, bf16 *y, int64_t rows, int64_t width, int threads) {
    Silus t = {{x, y, width}, rows};
    umbel_in_team(silus_alone, &t, threads);
}

typedef struct {
    bf16 *x;
    int64_t stride, heads, d;
} Rotate;

/* RoPE of the first ``heads`` heads of a row, in place; feature i pairs with i + d/2. */
static void rotate_row(bf16 *x, const Rotate *t, const bf16 *cs, const bf16 *sn) {
    int64_t half = t->d / 2;
    for (int64_t head = 0; head < t->heads; head++) {
        bf16 *a = x + head * t->d, *b = a + half;
        int64_t c = 0;
        for (; c + WIDTH <= half; c += WIDTH) {
            Vector first = wides(a + c), second = wides(b + c);
            narrows(a + c, first * wides(cs + c) - second * wides(sn + c));
            narrows(b + c, second * wides(cs + half + c) + first * wides(sn + half + c));
        }
        for (; c < half; c++) {
            float first = wide(a[c]), second = wide(b[c]);
            a[c] = narrow(first * wide(cs[c]) - second * wide(sn[c]));
            b[c] = narrow(second * wide(cs[half + c]) + first * wide(sn[half + c]));
        }
    }
}

typedef struct {
    const bf16 *cosines, *sines; /* [angles, d] */
    const int64_t *which;        /* of them for each row; NULL: each row has its own */
} Angles;

static void rotations(Team *team, const Rotate *t, const Angles *by, int64_t rows) {
    int64_t parts = parts_of(team, rows, t->heads * t->d), part;
    while ((part = take(team, parts)) >= 0)
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
            int64_t at = (by->which ? by->which[row] : row) * t->d;
            rotate_row(t->x + row * t->stride, t, by->cosines + at, by->sines + at);
        }
    finish(team, parts);
}

void umbel_tape_rotate(const Now *now, const void *told, Team *team) {
    Angles by = {now->cosines, now->sines, now->positions};
    rotations(team, told, &by, now->rows);
}

typedef struct {
    Rotate rotate;
    Angles by;
    int64_t rows;
} Rotations;

static void rotations_alone(Team *team, const void *told) {
    const Rotations *t = told;
    rotations(team, &t->rotate, &t->by, t->rows);
}

void umbel_rotate(
    bf16 *x, int64_t stride, const bf16 *cosines, const bf16 *sines, int64_t rows, int64_t heads, int64_t d, int threads
) {
    Rotations t = {{x, stride, heads, d}, {cosines, sines, 0}, rows};
    umbel_in_team(rotations_alone, &t, threads);
}

typedef struct {
    const bf16 *x; /* [rows, width] */
    bf16 *y;       /* [places, width] */
    int64_t width;
} Pick;

/* The states whose next tokens are asked for, side by side. */
void umbel_tape_pick(const Now *now, const void *told, Team *team) {
    const Pick *t = told;
    int64_t place;
    while ((place = take(team, now->places)) >= 0)
        memcpy(t->y + place * t->width, t->x + now->wanted[place] * t->width, t->width * sizeof(bf16));
    finish(team, now->places);
}

typedef struct {
    const float *scale; /* [width], or NULL: these rows stay */
    int64_t first, count; /* of its rows in ``rows`` */
} Scaled;

/* (IA)3: y = scale * y, in place, for all rows of a step; ``rows`` says which of them belong to which scale. */
typedef struct {
    bf16 *y;
    int64_t width;
    const int32_t *rows;
    const Scaled *groups;
    int64_t count, all_rows;
} Scale;

static void scale_row(bf16 *to, const float *by, int64_t width) {
    int64_t c = 0;
    for (; c + WIDTH <= width; c += WIDTH) {
        narrows(to + c, wides(to + c) * load(by + c));
    }
    for (; c < width; c++) to[c] = narrow(wide(to[c]) * by[c]);
}

static void scales(Team *team, const void *told) {
    const Scale *t = told;
    int64_t parts = parts_of(team, t->all_rows, t->width), part;
    while ((part = take(team, parts)) >= 0)
        for (const Scaled *g = t->groups; g < t->groups + t->count; g++)
            for (int64_t i = g->first; g->scale && i < g->first + g->count; i++)
                if (i % parts == part) scale_row(t->y + t->rows[i] * t->width, g->scale, t->width);
    finish(team, parts);
}

void umbel_tape_scale(const Now *now, const void *told, Team *team) {
    (void)now;
    scales(team, told);
}

void umbel_scale(
    bf16 *y, int64_t width, const int32_t *rows, const Scaled *groups, int64_t count, int64_t all_rows, int threads
) {
    Scale t = {y, width, rows, groups, count, all_rows};
    umbel_in_team(scales, &t, threads);
}

typedef struct {
    const bf16 *x; /* [rows, width] */
    int64_t rows, width;
    float *best;
    int64_t *place;
} Likeliest;

#define SPAN 1024

/* NaN where one is among them. */
static float largest_of(const bf16 *x, int64_t width) {
    Vector tops = all(-INFINITY);
    Whole nan = {0};
    int64_t c = 0;
    for (; c + WIDTH <= width; c += WIDTH) {
        Vector v = wides(x + c);
        tops = larger(v, tops);
        nan |= v != v;
    }
    float top = largest(tops, -INFINITY);
    for (int l = 0; l < WIDTH; l++)
        if (nan[l]) return NAN;
    for (; c < width; c++) {
        float v = wide(x[c]);
        if (v != v) return v;
        if (v > top) top = v;
    }
    return top;
}

/* A row's largest number and where it stands first. */
static void likeliest(const Likeliest *t, int64_t row) {
    const bf16 *x = t->x + row * t->width;
    int64_t found = 0;
    float best = -INFINITY;
    for (int64_t at = 0; at < t->width; at += SPAN) {
        float top = largest_of(x + at, t->width - at < SPAN ? t->width - at : SPAN);
        if (top > best || top != top) best = top, found = at;
        if (top != top) break;
    }
    while (best == best && wide(x[found]) != best) found++;
    t->best[row] = best, t->place[row] = found;
}

static void likeliests(Team *team, const void *told) {
    const Likeliest *t = told;
    int64_t row;
    while ((row = take(team, t->rows)) >= 0) likeliest(t, row);
    finish(team, t->rows);
}

void umbel_tape_likeliest(const Now *now, const void *told, Team *team) {
    Likeliest t = *(const Likeliest *)told;
    t.rows = now->places;
    likeliests(team, &t);
}

/* Of each row the largest number, and the first place where it stands. Where a NaN is among them it is NaN, and the place
   is near it. */
void umbel_likeliest(const bf16 *x, int64_t rows, int64_t width, float *best, int64_t *place, int threads) {
    Likeliest t = {x, rows, width, best, place};
    umbel_in_team(likeliests, &t, threads);
}
