// What layers do between their products in training, forward and backward, in one pass over memory each.
//
// Tensors are contiguous unless strides are given, bf16 or fp32 as `is_bf16` says; all arithmetic is fp32, and a number
// is rounded once, where it is stored.
#ifndef WENMO_TRAINING_H
#define WENMO_TRAINING_H

#include <stdint.h>

#include "pool.h"

// out = silu(gate) · up, element by element (Shazeer 2020, §2).
void gate_forward(Pool *pool, const void *gate, const void *up, void *out, long number, int is_bf16);
void gate_backward(Pool *pool, const void *gate, const void *up, const void *d_out, void *d_gate, void *d_up, long number,
                   int is_bf16);

// out = x · scale · weight of each row, scale = 1 / √(mean(x²) + ε), kept (Zhang & Sennrich 2019, §3). weight: fp32.
void norm_forward(Pool *pool, const void *x, const float *weight, float epsilon, void *out, float *scales, long rows,
                  int width, int is_bf16);
// Rows are cut into `parts`. d_weights: [parts, 2, width], zeros; the sum of [:, 0] is the weight's gradient.
void norm_backward(Pool *pool, const void *x, const float *weight, const float *scales, const void *d_out, void *d_x,
                   float *d_weights, int parts, long rows, int width, int is_bf16);

// Pairs (x_i, x_{i+H/2}) of each head turned by the row's angles (Su et al. 2021, §3.4), or back. x and out: [rows, heads,
// H]; cosines and sines: [rows, H], as rope.py has them: their second halves are read.
void rotate_heads(Pool *pool, const void *x, const void *cosines, const void *sines, void *out, long rows, int heads,
                  int width, int backward, int is_bf16);

// Rows of logits become their gradients, softmax − target; losses: [rows], −log of the target's share. A target of −100
// counts nothing. smoothing: as in nn/cross_entropy.py.
void cross_entropy(Pool *pool, void *logits, const int64_t *targets, float *losses, long rows, int words, float smoothing,
                   int is_bf16);

// Which keys a query of a block sees, by their places: key s, counted from the block's first, and query q see each other
// if s ≤ q + ahead, and s > q + ahead − window unless window is 0. ahead ≥ keys: all of them.
typedef struct { int keys, queries, ahead, window; } Sight;

// Scores [count, keys, queries of `groups` heads that share their keys] become weights: softmax over the keys in sight.
void weigh_keys(Pool *pool, void *scores, long count, int groups, const Sight *sight, int is_bf16);
// Gradients of weights become gradients of scores.
void weigh_keys_backward(Pool *pool, void *gradients, const void *weights, long count, int groups, const Sight *sight,
                         int is_bf16);

// out[r, n, t] = x[r, t, n] · factor, heads of `width` numbers; strides, in numbers, of r, t and n on either side.
void move_heads(Pool *pool, const void *x, const long x_strides[3], void *out, const long out_strides[3], long rows,
                int tokens, int heads, int width, float factor, int is_bf16);

#endif
