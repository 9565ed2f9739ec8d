// A step as its files know it, and what is done to its rows between the products.
#ifndef WENMO_ROWS_H
#define WENMO_ROWS_H

#include <stdatomic.h>

#include "step.h"

enum { MOST_ROWS = 64 };  // of a chunk

// What a thread has of its own while it takes a chunk through a layer.
typedef struct {
    float *input, *output;  // [MOST_ROWS, whatever a matrix takes or gives]
    char *prepared;         // the input, as a matrix wants it
    void *attention;        // scratch
} Buffers;

typedef struct {
    Pool *pool;
    const Model *model;
    const Span *spans;
    const Cache *caches;
    const int *scored;
    int rows, num_spans, num_scored, parts_of_attention;
    int num_chunks;  // 0: all threads go through each phase together
    float *hidden, *scores;
    // In the workspace:
    float *turns;   // [rows, head_width]: cosines, then sines of a row's position
    float *joint;   // [rows, joint_width]: queries, keys and values
    float *input;   // [rows, or of each thread MOST_ROWS; whatever a matrix takes]
    float *output;  // the same, whatever a matrix gives that has no other place
    char *prepared;
    char *attention;  // each thread's scratch
    size_t input_step, output_step, prepared_step, attention_bytes;  // from one thread's to the next one's
    float *last;          // [scored, width]: after the final norm
    char *prepared_last;  // the same, as the vocabulary wants it
    int *positions, *span_of;  // [rows]
    atomic_int *taken;         // [layers]: parts of attention that somebody does; or [1]: turns
    atomic_int *done;          // [chunks]: layers of which its keys and values stand
} Step;

static inline int joint_width(const Model *m) { return (m->heads + 2 * m->key_heads) * m->head_width; }
static inline int share(int number, int part, int parts) { return (int)((long)number * part / parts); }

// x / √(mean(x²) + ε) · weight (Zhang & Sennrich 2019, §3).
void normalise(const float *x, const float *weight, int width, float epsilon, float *y);
void add(float *x, const float *y, int width);
// silu(gate) · up (Shazeer 2020, §2).
void activate(const float *gate, const float *up, int width, float *y);

// Of rows from … to − 1: where they stand, and how that turns queries and keys.
void find_positions(const Step *s, int from, int to);
// Queries, keys and values of a row: normed where the model does so, turned; keys and values go where they stay.
void settle_row(const Step *s, int layer, int row);

#endif
