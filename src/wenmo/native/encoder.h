// An encoder of BERT's shape: whole sequences, end to end, through all layers.
#ifndef WENMO_ENCODER_H
#define WENMO_ENCODER_H

#include <stdint.h>

#include "matrix.h"
#include "pool.h"

enum { GELU, GELU_TANH, RELU, SILU };  // activations

typedef struct { const float *weight, *bias; } LayerNorm;  // [width] each

typedef struct {
    Matrix query_key_value, attention_out, up, down;
    LayerNorm attention_norm, output_norm;
} EncoderLayer;

typedef struct {
    int width, heads, head_width, feed_forward, num_layers;
    int keys_are_bf16, activation;
    float epsilon;                              // of the norms
    int num_words, num_positions, num_segments;
    const float *words, *positions, *segments;  // rows of embeddings, [number, width] each
    LayerNorm norm;                             // of their sum
    const EncoderLayer *layers;
} Encoder;

size_t encoder_bytes(const Encoder *encoder, int rows, int num_sequences, int longest, int threads);  // of a workspace

// ids, segments: [rows]; segments may be NULL, for zeros. lengths: [sequences], their sum the rows. hidden: [rows, width],
// what comes out; or where `first` is not NULL that of each sequence's first row alone: [sequences, width]. workspace:
// aligned to 64 bytes. Returns 0, and has done nothing, where an embedding is missing.
int run_encoder(Pool *pool, const Encoder *encoder, const int64_t *ids, const int64_t *segments, int num_sequences,
                const int *lengths, float *hidden, float *first, void *workspace);

#endif
