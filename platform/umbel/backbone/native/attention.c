/* One token of each decoding row: writes its key and value, then attends to its own places and to no others.

   A row's sums have one order, however long the rows beside it are. The query heads of one key head share a pass over
   the keys and one over the values, so that each is read once. While a head's keys are read its values are fetched, and
   then the next head's keys: a core has always some way to go in memory, and a few microseconds to go it. */

#include "scores.h"
#include "tape.h"

typedef struct {
    const bf16 *q, *k, *v; /* rotated, [rows, heads, d] */
    int64_t q_row, q_head, k_row, k_head, v_row, v_head;
    bf16 *keys, *values; /* [slots, kv_heads, places, d] */
    int64_t slot_stride, head_stride;
    bf16 *context; /* [rows, heads, d] */
    const int64_t *slots, *positions;
    int64_t rows, kv_heads, group, d;
    float scale;
    float *scores; /* [threads, group, room] */
    int64_t room;
    int64_t shared; /* whether several rows are places of one slot */
} Decode;

/* ``v`` vectors of the context of ``n`` query heads, from feature ``c`` on. */
INLINE void mix(
    const float *weights, int64_t room, const float *sums, const bf16 *values, int64_t d, int64_t count, int64_t c,
    bf16 *context, const bf16 *coming, const int n, const int v
) {
    Vector mixed[AT_ONCE][ABREAST];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) mixed[i][j] = all(0.0f);
    for (int64_t l = 0; l < count; l++) {
        Vector vs[ABREAST];
        if (coming) fetch(coming + l * d + c, v * WIDTH, 1);
        for (int j = 0; j < v; j++) vs[j] = wides(values + l * d + c + j * WIDTH);
        for (int i = 0; i < n; i++) {
            Vector w = all(weights[i * room + l]);
            for (int j = 0; j < v; j++) mixed[i][j] += w * vs[j];
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) narrows(context + i * d + c + j * WIDTH, mixed[i][j] * all(1.0f / sums[i]));
}

INLINE void attend(
    const bf16 *const *q, const bf16 *keys, const bf16 *values, int64_t d, int64_t count, float scale, float *scores,
    int64_t room, bf16 *context, const bf16 *coming, const int n
) {
    float sums[AT_ONCE];
    score_all(q, keys, d, count, scale, scores, room, values, n);
    for (int i = 0; i < n; i++) sums[i] = weigh(scores + i * room, count);
    int64_t c = 0;
    for (; c + ABREAST * WIDTH <= d; c += ABREAST * WIDTH)
        mix(scores, room, sums, values, d, count, c, context, coming, n, ABREAST);
    for (; c + WIDTH <= d; c += WIDTH) mix(scores, room, sums, values, d, count, c, context, coming, n, 1);
    for (; c < d; c++)
        for (int i = 0; i < n; i++) {
            float mixed = 0.0f;
            for (int64_t l = 0; l < count; l++) mixed += scores[i * room + l] * wide(values[l * d + c]);
            context[i * d + c] = narrow(mixed / sums[i]);
        }
}

static bf16 *of_head(const Decode *s, bf16 *all, int64_t row, int64_t g) {
    return all + s->slots[row] * s->slot_stride + g * s->head_stride;
}

static void write(const Decode *s, int64_t row, int64_t g) {
    int64_t at = s->positions[row] * s->d;
    memcpy(of_head(s, s->keys, row, g) + at, s->k + row * s->k_row + g * s->k_head, s->d * sizeof(bf16));
    memcpy(of_head(s, s->values, row, g) + at, s->v + row * s->v_row + g * s->v_head, s->d * sizeof(bf16));
}

INLINE void head(const Decode *s, int64_t row, int64_t g, float *scores, const bf16 *coming, const int64_t d) {
    int64_t at = s->positions[row], heads = s->kv_heads * s->group;
    bf16 *keys = of_head(s, s->keys, row, g), *values = of_head(s, s->values, row, g);
    if (!s->shared) write(s, row, g);
    const bf16 *q[AT_ONCE];
    for (int64_t i = 0; i < s->group;) {
        bf16 *context = s->context + (row * heads + g * s->group + i) * d;
        int n = s->group - i < AT_ONCE ? (int)(s->group - i) : AT_ONCE;
        for (int j = 0; j < n; j++) q[j] = s->q + row * s->q_row + (g * s->group + i + j) * s->q_head;
        float *own = scores + i * s->room;
        switch (n) {
        case 4: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, coming, 4); break;
        case 3: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, coming, 3); break;
        case 2: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, coming, 2); break;
        default: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, coming, 1);
        }
        i += n;
    }
}

/* Loops over a width that the compiler knows need a pointer where others need one for each place. */
static void head_of_any(const Decode *s, int64_t row, int64_t g, float *scores, const bf16 *coming) {
    switch (s->d) {
    case 64: head(s, row, g, scores, coming, 64); break;
    case 128: head(s, row, g, scores, coming, 128); break;
    default: head(s, row, g, scores, coming, s->d);
    }
}

/* A thread takes a task before it has done the one before, so that it knows what to fetch. */
static void decode(Team *team, const void *told) {
    const Decode *s = told;
    int64_t tasks = s->rows * s->kv_heads, next;
    float *scores = s->scores + team->me * s->group * s->room;
    if (s->shared) { /* a place is read by those behind it */
        while ((next = take(team, tasks)) >= 0) write(s, next / s->kv_heads, next % s->kv_heads);
        finish(team, tasks);
    }
    for (int64_t task = take(team, tasks); task >= 0; task = next) {
        next = take(team, tasks);
        const bf16 *coming = next < 0 ? NULL : of_head(s, s->keys, next / s->kv_heads, next % s->kv_heads);
        head_of_any(s, task / s->kv_heads, task % s->kv_heads, scores, coming);
    }
    finish(team, tasks);
}

void umbel_decode(const Decode *s, int threads) { umbel_in_team(decode, s, threads); }

void umbel_tape_decode(const Now *now, const void *told, Team *team) {
    if (!now->decode) return;
    Decode s = *(const Decode *)now->decode;
    int64_t offset = offset_of(now, told);
    s.keys += offset, s.values += offset;
    decode(team, &s);
}
