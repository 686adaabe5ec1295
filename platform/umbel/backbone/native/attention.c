/* One token of each decoding row: writes its key and value, then attends to its own places and to no others.

   A row's sums have one order, however long the rows beside it are. The query heads of one key head share a pass over
   the keys and one over the values, so that each is read once. */

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
} Decode;

/* ``v`` vectors of the context of ``n`` query heads, from feature ``c`` on. */
INLINE void mix(
    const float *weights, int64_t room, const float *sums, const bf16 *values, int64_t d, int64_t count, int64_t c,
    bf16 *context, const int n, const int v
) {
    f32x16 mixed[AT_ONCE][4];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) mixed[i][j] = all(0.0f);
    for (int64_t l = 0; l < count; l++) {
        f32x16 vs[4];
        for (int ahead = 0; ahead < v * LANES; ahead += LINE) __builtin_prefetch(values + (l + AHEAD) * d + c + ahead);
        for (int j = 0; j < v; j++) vs[j] = wide16(values + l * d + c + j * LANES);
        for (int i = 0; i < n; i++) {
            f32x16 w = all(weights[i * room + l]);
            for (int j = 0; j < v; j++) mixed[i][j] += w * vs[j];
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < v; j++) narrow16(context + i * d + c + j * LANES, mixed[i][j] / all(sums[i]));
}

INLINE void attend(
    const bf16 *const *q, const bf16 *keys, const bf16 *values, int64_t d, int64_t count, float scale, float *scores,
    int64_t room, bf16 *context, const int n
) {
    float sums[AT_ONCE];
    score_all(q, keys, d, count, scale, scores, room, n);
    for (int i = 0; i < n; i++) sums[i] = weigh(scores + i * room, count);
    int64_t c = 0;
    for (; c + 4 * LANES <= d; c += 4 * LANES) mix(scores, room, sums, values, d, count, c, context, n, 4);
    for (; c + LANES <= d; c += LANES) mix(scores, room, sums, values, d, count, c, context, n, 1);
    for (; c < d; c++)
        for (int i = 0; i < n; i++) {
            float mixed = 0.0f;
            for (int64_t l = 0; l < count; l++) mixed += scores[i * room + l] * wide(values[l * d + c]);
            context[i * d + c] = narrow(mixed / sums[i]);
        }
}

/* The first places of a head, which nothing before them announces. */
static void fetch_first(const bf16 *places, int64_t d) {
    for (int64_t ahead = 0; ahead < AHEAD * d; ahead += LINE) __builtin_prefetch(places + ahead);
}

static bf16 *of_head(const Decode *s, bf16 *all, int64_t row, int64_t g) {
    return all + s->slots[row] * s->slot_stride + g * s->head_stride;
}

static void head(const Decode *s, int64_t row, int64_t g, float *scores) {
    int64_t at = s->positions[row], d = s->d, heads = s->kv_heads * s->group;
    bf16 *keys = of_head(s, s->keys, row, g), *values = of_head(s, s->values, row, g);
    fetch_first(values, d);
    memcpy(keys + at * d, s->k + row * s->k_row + g * s->k_head, d * sizeof(bf16));
    memcpy(values + at * d, s->v + row * s->v_row + g * s->v_head, d * sizeof(bf16));
    const bf16 *q[AT_ONCE];
    for (int64_t i = 0; i < s->group;) {
        bf16 *context = s->context + (row * heads + g * s->group + i) * d;
        int n = s->group - i < AT_ONCE ? (int)(s->group - i) : AT_ONCE;
        for (int j = 0; j < n; j++) q[j] = s->q + row * s->q_row + (g * s->group + i + j) * s->q_head;
        float *own = scores + i * s->room;
        switch (n) {
        case 4: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, 4); break;
        case 3: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, 3); break;
        case 2: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, 2); break;
        default: attend(q, keys, values, d, at + 1, s->scale, own, s->room, context, 1);
        }
        i += n;
    }
}

void umbel_decode(const Decode *s, int threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < s->rows * s->kv_heads; task++) {
        int me = 0;
#ifdef _OPENMP
        me = omp_get_thread_num();
#endif
        int64_t next = task + threads, heads = s->kv_heads;
        if (next < s->rows * heads) fetch_first(of_head(s, s->keys, next / heads, next % heads), s->d);
        head(s, task / s->kv_heads, task % s->kv_heads, s->scores + me * s->group * s->room);
    }
}

void umbel_tape_decode(const Now *now, const void *told, int threads) {
    if (!now->decode) return;
    Decode s = *(const Decode *)now->decode;
    int64_t offset = offset_of(now, told);
    s.keys += offset, s.values += offset;
    umbel_decode(&s, threads);
}
