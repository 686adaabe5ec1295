/* Threads that do a list of calls together, each call in tasks.

   Every thread goes through all calls. Of a call's tasks it takes its own part first, one after another, and then what
   is left of the others'. A call is over when all its tasks are done, not when everybody has come: one that the system
   put to sleep between two tasks is not waited for, and finds later that nothing is left to do. Where all are awake this
   costs two words that go from core to core; a parallel region of OpenMP costs some microseconds, and a step has
   hundreds of calls. */
#ifndef UMBEL_TEAM_H
#define UMBEL_TEAM_H

#include <sched.h>
#include <stdatomic.h>

#include "vectors.h"

/* A call's number above, and below how many tasks of it were taken, or done. Each on a cache line of its own. */
typedef struct {
    _Alignas(128) _Atomic uint64_t word;
} Counter;

/* A thread's view. All threads of a team go through the same calls with the same numbers of tasks. */
typedef struct {
    int me, threads;
    Counter *taken; /* of each thread's part */
    Counter *done;
    uint64_t call;
    int64_t part, mine; /* parts looked through, and tasks that were taken here, of this call */
} Team;

typedef void TeamWork(Team *team, const void *told);

/* Does it with up to ``threads`` threads. */
void umbel_in_team(TeamWork *work, const void *told, int threads);

#if defined(__x86_64__)
#define REST() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define REST() __asm__ volatile("yield")
#else
#define REST() ((void)0)
#endif
#define PATIENCE 2000 /* rests before others may have the core: some 20 us */

/* One more of a counter unless it has ``most`` of this call, or a later call has it; how many there were, or -1. */
INLINE int64_t one_more(Counter *counter, uint64_t call, int64_t most) {
    uint64_t word = atomic_load_explicit(&counter->word, memory_order_acquire);
    for (;;) {
        uint64_t of = word >> 32;
        int64_t count = of == call ? (int64_t)(word & UINT32_MAX) : 0;
        if (of > call || count >= most) return -1;
        if (atomic_compare_exchange_weak_explicit(
                &counter->word, &word, call << 32 | (uint64_t)(count + 1), memory_order_acq_rel, memory_order_acquire
            ))
            return count;
    }
}

/* The first task of a thread's part; a lone task is the first thread's. */
INLINE int64_t first_of(const Team *team, int64_t tasks, int64_t part) {
    return (tasks * part + team->threads - 1) / team->threads;
}

/* A task that nobody has taken, or -1. */
INLINE int64_t take(Team *team, int64_t tasks) {
    for (; team->part < team->threads; team->part++) {
        int64_t part = (team->me + team->part) % team->threads;
        int64_t from = first_of(team, tasks, part), to = first_of(team, tasks, part + 1);
        int64_t task = one_more(team->taken + part, team->call, to - from);
        if (task >= 0) {
            team->mine++;
            return from + task;
        }
    }
    return -1;
}

/* Waits until all tasks of the call are done; what is taken from then on is of the next one. */
INLINE void finish(Team *team, int64_t tasks) {
    uint64_t word = atomic_load_explicit(&team->done->word, memory_order_acquire), all = team->call << 32 | (uint64_t)tasks;
    if (team->mine) {
        uint64_t more;
        do more = (word >> 32 == team->call ? word : team->call << 32) + (uint64_t)team->mine;
        while (!atomic_compare_exchange_weak_explicit(
            &team->done->word, &word, more, memory_order_acq_rel, memory_order_acquire
        ));
        word = more;
    }
    for (int rests = 0; tasks && word < all; word = atomic_load_explicit(&team->done->word, memory_order_acquire)) {
        if (++rests % PATIENCE) REST();
        else sched_yield();
    }
    team->call++, team->part = team->mine = 0;
}

#endif
