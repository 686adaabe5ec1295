/* OpenMP counts the threads of all teams that threads of the process keep. Where they are more than the processors, no
   thread waits for its next work with open eyes: it sleeps, and calls of a few microseconds wait for it to wake up. */

#ifdef _OPENMP
#include <omp.h>

/* The calling thread needs no team from now on. */
void umbel_alone(void) { omp_set_num_threads(1); }

/* The calling thread's team goes; it comes back when it is needed. */
void umbel_let_go(void) { omp_pause_resource_all(omp_pause_soft); }

#else

void umbel_alone(void) {}
void umbel_let_go(void) {}

#endif
