/* A frozen linear, y = x W^T + b.

   W lies in blocks of COLUMNS outputs, each with two inputs of every output side by side, in the order that they are
   read: in bf16, in the same bf16 made compact, or in codes of 8 or 4 bits (forms.h). A number of y is one sum over the
   inputs, whatever rows stand beside it: no row needs company. While a block is multiplied with tile after tile of rows,
   the next one is fetched, so that a step of few rows is as fast as the memory, and one of many as fast as the
   multipliers. What they multiply is pairs of bf16 where the processor can, and else fp32. */

#include "linear.h"
#include "tape.h"

#if defined(__AMX_BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) /* oneDNN multiplies with those */

int umbel_has_linear(void) { return 0; }

int64_t umbel_linear_room(void) { return 0; }

void umbel_linear(void) {}

void umbel_tape_linear(void) {}

void umbel_tape_lm_head(void) {}

#else
#ifdef __AVX512BF16__
#include "bf16_blocks.h"
#else
#include "fp32_blocks.h"
#endif

#define MANY 64 /* rows of a thread */

int umbel_has_linear(void) { return 1; }

/* Blocks are shared out among threads; rows, too, where blocks are too few to give each as much; rows alone where they
   are so many that reading the weights once more costs nothing beside multiplying. A thread's rows are then its own from
   linear to linear, in what stands between them, too: nothing of them is fetched from another core's cache. */
static int64_t parts_of(const Product *of, int64_t rows, int threads) {
    int64_t most = rows / (2 * TILE), parts = 1, blocks = blocks_of(of);
    if (rows >= MANY * threads) return threads;
    while (parts < most && blocks * parts < 4 * threads && blocks * parts % threads) parts++;
    return parts;
}

/* The first row of a part: whole tiles before it. */
static int64_t row_of(const Linear *s, int64_t part, int64_t parts) {
    return part == parts ? s->rows : s->rows * part / parts / TILE * TILE;
}

/* What a thread will read behind a task: the block that follows, or, where that is another thread's, its first one of the
   linear that comes next. Without that a thread waits for memory at the beginning of each of a step's linears. */
static Block behind(const Linear *s, const Team *team, int64_t task, int64_t tasks) {
    const Product *next = s->of->next;
    int64_t blocks = blocks_of(s->of);
    for (int64_t part = 1; part <= team->threads; part++) {
        if (task + 1 != first_of(team, tasks, part)) continue;
        if (!next) return (Block){0};
        blocks = blocks_of(next);
        tasks = blocks * parts_of(next, s->rows, team->threads);
        return (Block){next, first_of(team, tasks, team->me) % blocks};
    }
    return (Block){s->of, (task + 1) % blocks};
}

static void share(Team *team, const void *told) {
    const Linear *s = told;
    int64_t blocks = blocks_of(s->of), parts = parts_of(s->of, s->rows, team->threads), tasks = blocks * parts, task;
    int64_t ready = -1;
    char *room = s->of->room + team->me * room_for(s->rows, s->of->d_in, is_codes(s->form));
    while ((task = take(team, tasks)) >= 0) {
        int64_t part = task / blocks, block = task % blocks;
        int64_t from = row_of(s, part, parts), to = row_of(s, part + 1, parts);
        if (part != ready) prepare(s, from, to, room), ready = part;
        multiply(s, from, to, block, behind(s, team, task, tasks), room);
    }
    finish(team, tasks);
}

/* Bytes of ``room`` that each thread needs for up to so many rows and inputs. */
int64_t umbel_linear_room(int64_t rows, int64_t d_in, int codes) { return room_for(rows, d_in, codes); }

void umbel_linear(const Product *of, int64_t rows, int threads) {
    Linear s = {of, rows, form_of(of)};
    umbel_in_team(share, &s, threads);
}

void umbel_tape_linear(const Now *now, const void *told, Team *team) {
    Linear s = {told, now->rows, form_of(told)};
    share(team, &s);
}

/* Of the rows whose next token is asked for. */
void umbel_tape_lm_head(const Now *now, const void *told, Team *team) {
    Linear s = {told, now->places, form_of(told)};
    share(team, &s);
}

#endif
