"""A team does every task of every call once, and does not wait for a thread that sleeps between two of them."""

import subprocess

import pytest

from umbel.backbone.native import kernels as built

PROGRAM = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <time.h>

#include "team.h"

enum { CALLS = 20000, MOST = 9 };

static _Atomic int done[CALLS][MOST], early;
static double ended, woke;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void work(Team *team, const void *told) {
    (void)told;
    for (int call = 0; call < CALLS; call++) {
        int64_t tasks = call % (MOST + 1), task;
        if (call == CALLS / 2 && team->me == team->threads - 1) {
            nanosleep(&(struct timespec){2, 0}, NULL);
            woke = now();
        }
        while ((task = take(team, tasks)) >= 0) {
            int before = (call - 1) % (MOST + 1);
            for (int i = 0; call && i < before; i++) early += !done[call - 1][i];
            done[call][task]++;
        }
        finish(team, tasks);
    }
    if (!team->me) ended = now();
}

int main(void) {
    int wrong = 0;
    umbel_in_team(work, NULL, THREADS);
    for (int call = 0; call < CALLS; call++)
        for (int task = 0; task < MOST; task++) wrong += done[call][task] != (task < call % (MOST + 1));
    printf("%d wrong, %d early, %s\n", wrong, early, ended < woke ? "did not wait" : "waited");
}
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    def run(threads):
        scratch = tmp_path_factory.mktemp("team")
        (scratch / "program.c").write_text(PROGRAM)
        flags = [flag for flag in built._FLAGS if flag != "-shared"]
        command = [built._compiler(), *flags, f"-I{built._HERE}", f"-DTHREADS={threads}", "program.c"]
        subprocess.run([*command, str(built._HERE / "threads.c"), "-o", "program"], cwd=scratch, check=True)
        return subprocess.run(["./program"], cwd=scratch, capture_output=True, text=True, check=True).stdout

    return run


@pytest.mark.parametrize("threads", [2, 3, 5, 20])
def test_every_task_is_done_once_and_in_its_turn_and_nobody_waits_for_one_that_sleeps(threads, ended, kernels):
    assert ended(threads) == "0 wrong, 0 early, did not wait\n"
