// Products of a few or many rows with a matrix whose weights were packed once (packing.py).
//
// In: rows of fp32 numbers. Out: rows of fp32 numbers, y = x W^T + b. Between them each row is made ready once
// (`prepare`: rounded to bf16, or to whole numbers with a scale for each group: of 8 bits, for weights of 4 of 16), and
// then multiplied by any part of the outputs (`multiply`), by as many threads as there are.
//
// A row's results depend on this row alone: each of its sums is taken over the inputs in their order, in one
// accumulator, however many rows are beside it and whichever outputs are asked for at once.
#ifndef WENMO_MATRIX_H
#define WENMO_MATRIX_H

#include <stddef.h>

enum { FP32, BF16, INT8, INT4, INT8_GROUPS };  // kinds
enum { BLOCK = 16 };              // outputs that stand beside one another in the packed weights: a block

typedef struct {
    int kind, in, out;
    const void *codes;         // blocks of BLOCK outputs, aligned to 64 bytes, the last one filled up with zeros:
                               //   FP32  [blocks][in][BLOCK] floats
                               //   BF16  [blocks][in / 2][BLOCK][2], an odd `in` filled up
                               //   INT8  [blocks][in / 4][BLOCK][4] codes + 128, `in` filled up to whole groups
                               //   INT4  [blocks][in / 32] of 4 x 64 bytes, then BLOCK scales and BLOCK minima in fp16:
                               //         four bits i and i + 4 of an output's 32 in the j-th 64 bytes have the
                               //         codes of its inputs 8 j + 2 i and 8 j + 2 i + 1
                               //   INT8_GROUPS  a block's codes as of INT8, then [in / 32][BLOCK] scales in fp16, and
                               //         zeros up to a multiple of 64 bytes
    const float *scales;       // INT8: one for each output, filled up like the codes
    const float *bias;         // one for each output, filled up; or NULL
} Matrix;

// Numbers in a register of this processor: from 8 on these functions are faster than others.
int register_width(void);

// Of all rows as `multiply` wants them, made ready by `prepare`. x: [rows, in].
size_t prepared_bytes(const Matrix *matrix, int rows);
void prepare(const Matrix *matrix, const float *x, int rows, void *prepared, int from_row, int to_row);

// Outputs from_out ... to_out of all rows, y[row * y_stride + output]. Both are multiples of BLOCK, or `out`.
void multiply(const Matrix *matrix, const void *prepared, int rows, float *y, int y_stride, int from_out, int to_out);

#endif
