#include "tape.h"

typedef struct {
    Call *call;
    const void *told;
} Entry;

typedef struct {
    const Entry *entries;
    int64_t count;
    const Now *now;
} Tape;

static void play(Team *team, const void *told) {
    const Tape *t = told;
    for (int64_t i = 0; i < t->count; i++) t->entries[i].call(t->now, t->entries[i].told, team);
}

void umbel_tape(const Entry *entries, int64_t count, const Now *now, int threads) {
    Tape t = {entries, count, now};
    umbel_in_team(play, &t, threads);
}
