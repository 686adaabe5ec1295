/* A step's calls, one after another, without a word from Python in between. */
#ifndef UMBEL_TAPE_H
#define UMBEL_TAPE_H

#include "team.h"

/* What differs from step to step. All else stands in the calls, whose buffers stay where they are. */
typedef struct {
    int64_t rows;                      /* of every matrix */
    const int64_t *tokens, *positions; /* [rows] */
    const bf16 *cosines, *sines;       /* [positions that there may be, d] */
    const void *decode, *prompt;       /* with the keys and values of layer 0; NULL where no row is of that kind */
    int64_t layer_stride;              /* numbers from one layer's keys to the next one's */
    const int64_t *wanted;             /* rows whose next token is asked for */
    int64_t places;                    /* how many those are */
} Now;

/* What the two kinds of attention are told. */
typedef struct {
    int64_t layer;
} Layer;

/* Numbers from the keys and values of layer 0 to those of its own. */
INLINE int64_t offset_of(const Now *now, const void *told) { return ((const Layer *)told)->layer * now->layer_stride; }

/* What a tape may hold: functions named umbel_tape_*, each with a structure of its own. */
typedef void Call(const Now *now, const void *told, Team *team);

#endif
