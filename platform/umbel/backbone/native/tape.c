#include "tape.h"

typedef struct {
    Call *call;
    const void *told;
} Entry;

void umbel_tape(const Entry *entries, int64_t count, const Now *now, int threads) {
    for (int64_t i = 0; i < count; i++) entries[i].call(now, entries[i].told, threads);
}
