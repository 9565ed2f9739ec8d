// A step of a model of Llama's shape: rows of any number of sequences, through all layers.
#ifndef WENMO_STEP_H
#define WENMO_STEP_H

#include "matrix.h"
#include "pool.h"

typedef struct {
    Matrix query_key_value, attention_out, gate_up, down;
    const float *attention_norm, *feed_forward_norm;  // weights of RMSNorm, [width]
    const float *query_norm, *key_norm;               // [head_width], or NULL
    int window;                                       // a token sees so many, its own included; 0: all before it
} Layer;

typedef struct {
    int width, heads, key_heads, head_width, feed_forward, num_layers;
    int cache_is_bf16;
    float epsilon;             // of the norms
    float rotary_factor;       // of cosines and sines
    const float *frequencies;  // [head_width / 2]: a position turns a pair by position · frequency
    const float *final_norm;   // [width]
    const Layer *layers;
    const Matrix *vocabulary;
} Model;

// Neighbouring rows that are neighbouring tokens of one sequence.
typedef struct {
    int first_row, rows;
    int start;       // the first one's position
    int cache;       // in which of the caches its keys and values stand
    long offset;     // of its slot there, in numbers
    long positions;  // between two key heads of a slot
} Span;

typedef struct { void *keys, *values; } Cache;  // of one layer: slots of [key heads, positions, head_width]

size_t workspace_bytes(const Model *model, int rows, int scored, int threads);

// hidden: [rows, width], the embeddings; overwritten. caches: [number of caches, layers]. scored: the rows whose scores of
// the vocabulary are wanted, [number]; scores: [number, vocabulary]. workspace: aligned to 64 bytes.
void run_step(Pool *pool, const Model *model, int rows, float *hidden, int num_spans, const Span *spans, const Cache *caches,
              int num_scored, const int *scored, float *scores, void *workspace);

// One matrix alone, by all threads: y = x W^T + b. prepared: room for prepared_bytes(matrix, rows).
void run_product(Pool *pool, const Matrix *matrix, const float *x, int rows, float *y, void *prepared);

#endif
