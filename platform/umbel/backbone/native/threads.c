#define _GNU_SOURCE /* cpu_set_t */
#include <stdlib.h>

#include "team.h"

/* Threads whose counters need no memory of their own. */
#define FEW 16

void umbel_in_team(TeamWork *work, const void *told, int threads) {
    Counter few[FEW + 1], *counters = few;
    if (threads > FEW) counters = aligned_alloc(sizeof(Counter), (threads + 1) * sizeof(Counter));
    if (!counters) threads = 1, counters = few;
    for (int i = 0; i <= threads; i++) atomic_init(&counters[i].word, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Team team = {0, 1, counters + 1, counters, 1, 0, 0}; /* of those that there are, which may be fewer */
#ifdef _OPENMP
        team.me = omp_get_thread_num(), team.threads = omp_get_num_threads();
#endif
        work(&team, told);
    }
    if (counters != few) free(counters);
}

/* OpenMP counts the threads of all teams that threads of the process keep. Where they are more than the processors, no
   thread waits for its next work with open eyes: it sleeps, and calls of a few microseconds wait for it to wake up. */

#ifdef _OPENMP
/* The calling thread needs no team from now on. */
void umbel_alone(void) { omp_set_num_threads(1); }

/* Helper i of the calling thread's team stays on ``cpus[i]``; the calling thread, number 0, goes where it likes. */
void umbel_settle(const int *cpus, int count) {
#ifdef __linux__
#pragma omp parallel num_threads(count)
    {
        int me = omp_get_thread_num();
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(cpus[me], &own);
        if (me) sched_setaffinity(0, sizeof own, &own);
    }
#endif
}

/* The calling thread's team goes; it comes back when it is needed. */
void umbel_let_go(void) { omp_pause_resource_all(omp_pause_soft); }

#else

void umbel_alone(void) {}
void umbel_settle(const int *cpus, int count) { (void)cpus, (void)count; }
void umbel_let_go(void) {}

#endif
