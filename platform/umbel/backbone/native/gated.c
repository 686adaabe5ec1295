/* LLaMA-Adapter's second attention for all rows of a step, over the prompt of the adapter that each wears:

       context_h = context_h + gate_h softmax(q_h K^T scale) V

   A row's sums have one order, whatever stands beside it, and are rounded once, with the context that they are added
   to. */

#include "scores.h"
#include "tape.h"

typedef struct {
    const bf16 *keys, *values; /* [kv_heads, length, d] */
    const float *gate;
    int64_t gate_step; /* 1: a gate for each query head; 0: one for all */
    int64_t length;    /* 0: this layer is not adapted */
    int64_t first, count; /* of its rows in ``rows`` */
} Group;

typedef struct {
    const bf16 *q; /* rotated, [rows, heads, d] */
    int64_t q_row, q_head;
    bf16 *context; /* [rows, heads, d] */
    const int32_t *rows;
    int64_t kv_heads, group, d;
    float scale;
    float *scores; /* [threads, group, room] */
    int64_t room;
} Site;

/* Adds ``v`` vectors of what ``n`` query heads found, from feature ``c`` on. */
INLINE void add(
    const float *weights, int64_t room, const float *factors, const bf16 *values, int64_t d, int64_t length, int64_t c,
    bf16 *context, const int n, const int v
) {
    Vector mixed[AT_ONCE][ABREAST];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) mixed[i][j] = all(0.0f);
    for (int64_t l = 0; l < length; l++) {
        Vector vs[ABREAST];
        for (int j = 0; j < v; j++) vs[j] = wides(values + l * d + c + j * WIDTH);
        for (int i = 0; i < n; i++) {
            Vector w = all(weights[i * room + l]);
            for (int j = 0; j < v; j++) mixed[i][j] += w * vs[j];
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) {
            bf16 *to = context + i * d + c + j * WIDTH;
            narrows(to, wides(to) + mixed[i][j] * all(factors[i]));
        }
}

INLINE void attend(
    const Site *s, const Group *g, int64_t row, int64_t kv_head, int64_t from, float *scores, const int n
) {
    int64_t d = s->d, head = kv_head * s->group + from;
    const bf16 *q[AT_ONCE], *keys = g->keys + kv_head * g->length * d, *values = g->values + kv_head * g->length * d;
    bf16 *context = s->context + (row * s->kv_heads * s->group + head) * d;
    float factors[AT_ONCE];
    for (int i = 0; i < n; i++) q[i] = s->q + row * s->q_row + (head + i) * s->q_head;
    score_all(q, keys, d, g->length, s->scale, scores, s->room, NULL, n);
    for (int i = 0; i < n; i++)
        factors[i] = g->gate[(head + i) * g->gate_step] / weigh(scores + i * s->room, g->length);
    int64_t c = 0;
    for (; c + ABREAST * WIDTH <= d; c += ABREAST * WIDTH)
        add(scores, s->room, factors, values, d, g->length, c, context, n, ABREAST);
    for (; c + WIDTH <= d; c += WIDTH) add(scores, s->room, factors, values, d, g->length, c, context, n, 1);
    for (; c < d; c++)
        for (int i = 0; i < n; i++) {
            float mixed = 0.0f;
            for (int64_t l = 0; l < g->length; l++) mixed += scores[i * s->room + l] * wide(values[l * d + c]);
            context[i * d + c] = narrow(wide(context[i * d + c]) + mixed * factors[i]);
        }
}

static void heads(const Site *s, const Group *g, int64_t row, int64_t kv_head, float *scores) {
    for (int64_t from = 0; from < s->group; from += AT_ONCE) {
        switch (s->group - from < AT_ONCE ? s->group - from : AT_ONCE) {
        case 4: attend(s, g, row, kv_head, from, scores, 4); break;
        case 3: attend(s, g, row, kv_head, from, scores, 3); break;
        case 2: attend(s, g, row, kv_head, from, scores, 2); break;
        default: attend(s, g, row, kv_head, from, scores, 1);
        }
    }
}

/* Multiply-adds that are worth waking another thread for. */
#define SMALL (1 << 17)

static int64_t work(const Site *s, const Group *groups, int64_t count) {
    int64_t keys = 0;
    for (const Group *g = groups; g < groups + count; g++) keys += g->count * g->length;
    return 2 * keys * s->kv_heads * s->group * s->d;
}

typedef struct {
    const Site *site;
    const Group *groups;
    int64_t count;
} Told;

/* The ``at``-th of all rows that wear a prompt here, with one key head. */
static void row_of(const Told *t, int64_t at, int64_t kv_head, float *scores) {
    const Group *g = t->groups;
    for (; !g->length || at >= g->count; g++) at -= g->length ? g->count : 0;
    heads(t->site, g, t->site->rows[g->first + at], kv_head, scores);
}

static void gated(Team *team, const void *told) {
    const Told *t = told;
    const Site *s = t->site;
    int64_t rows = 0, task;
    for (const Group *g = t->groups; g < t->groups + t->count; g++) rows += g->length ? g->count : 0;
    int64_t all = rows * s->kv_heads, tasks = work(s, t->groups, t->count) > SMALL || !all ? all : 1;
    while ((task = take(team, tasks)) >= 0)
        for (int64_t i = task; i < (tasks == all ? task + 1 : all); i++)
            row_of(t, i / s->kv_heads, i % s->kv_heads, s->scores + team->me * s->group * s->room);
    finish(team, tasks);
}

void umbel_gated(const Site *s, const Group *groups, int64_t count, int threads) {
    Told t = {s, groups, count};
    umbel_in_team(gated, &t, threads);
}

void umbel_tape_gated(const Now *now, const void *told, Team *team) {
    (void)now;
    gated(team, told);
}
