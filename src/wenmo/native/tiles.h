// A tile: a few rows by a few blocks of outputs. Its sums stay in registers while the weights go by, once, in the order
// in which they lie in memory. The numbers of rows and blocks are constants wherever these functions are put in.
#ifndef WENMO_TILES_H
#define WENMO_TILES_H

#include "lanes.h"
#include "matrix.h"

enum { LINE = 64, GROUP = 32, NIBBLES_BYTES = 5 * LINE };  // of the cache; inputs of a group; its 4 bits, in a block
enum { PARTS = BLOCK / WIDTH };                            // registers for a block's outputs
enum { PANEL = WIDTH == 16 ? 3 : 1 };                      // blocks that go by together
enum { WIDE_ROWS = WIDTH / 2, BYTES_ROWS = WIDTH / 4 };    // at most; sums of bytes take twice the registers
enum { SUMS = WIDE_ROWS * PANEL * PARTS };

// The next panel's weights, of which each tile asks its share of the memory.
typedef struct {
    const char *at, *end;
    int lines;  // at a time
} Ahead;

INLINE void ask(Ahead *ahead) {
    for (int i = 0; i < ahead->lines && ahead->at < ahead->end; i++, ahead->at += LINE)
        __builtin_prefetch(ahead->at, 0, 3);
}

INLINE size_t num_groups(const Matrix *matrix) { return ((size_t)matrix->in + GROUP - 1) / GROUP; }

// Of a row made ready. Of whole numbers: those of all groups, then their scales, starts of sums, and sums times scale.
INLINE size_t scales_at(const int kind, size_t groups) { return groups * GROUP * (kind == INT4 ? 2 : 1); }
INLINE size_t row_bytes(const Matrix *matrix) {
    size_t bytes = scales_at(matrix->kind, num_groups(matrix)) + num_groups(matrix) * 3 * sizeof(float);
    if (matrix->kind == FP32) bytes = (size_t)matrix->in * sizeof(float);
    if (matrix->kind == BF16) bytes = (size_t)(matrix->in + 1) / 2 * 2 * sizeof(uint16_t);
    return (bytes + LINE - 1) / LINE * LINE | LINE;  // an odd number of lines: rows do not meet in a cache's sets
}

// INT8_GROUPS: of a block.
INLINE size_t scale_bytes(const Matrix *matrix) {
    return (num_groups(matrix) * BLOCK * sizeof(uint16_t) + LINE - 1) / LINE * LINE;
}

INLINE size_t block_bytes(const Matrix *matrix) {
    if (matrix->kind == FP32) return (size_t)matrix->in * LINE;
    if (matrix->kind == BF16) return (size_t)(matrix->in + 1) / 2 * LINE;
    if (matrix->kind == INT4) return num_groups(matrix) * NIBBLES_BYTES;
    return num_groups(matrix) * GROUP / 4 * LINE + (matrix->kind == INT8_GROUPS ? scale_bytes(matrix) : 0);
}

typedef struct {
    const char *rows, *codes;  // the first row, the first block
    size_t row_step, block_step;
    Ahead ahead;
} Tile;

INLINE const char *part_at(const Tile *tile, int part, size_t offset) {
    return tile->codes + part / PARTS * tile->block_step + part % PARTS * sizeof(Floats) + offset;
}
// A block's fp16 numbers. Of them a part is half as wide as elsewhere.
INLINE const char *levels_at(const Tile *tile, int part, size_t offset, size_t number) {
    return tile->codes + part / PARTS * tile->block_step + part % PARTS * sizeof(Halves) + offset
           + number * BLOCK * sizeof(uint16_t);
}

INLINE Ints row_at(const Tile *tile, int row, size_t offset) {
    return same_four_bytes(tile->rows + row * tile->row_step + offset);
}
INLINE Floats factor_at(const Tile *tile, int row, size_t offset) { return (Floats)row_at(tile, row, offset); }

INLINE void add_fp32(const int num_rows, const int num_parts, const Matrix *matrix, Tile *tile, Floats sums[]) {
    for (int i = 0; i < matrix->in; i++) {
        if (i % 8 == 0) ask(&tile->ahead);
        Floats weights[PANEL * PARTS];
        UNROLL for (int p = 0; p < num_parts; p++) weights[p] = floats_at(part_at(tile, p, (size_t)i * LINE));
        UNROLL for (int r = 0; r < num_rows; r++) {
            Floats x = factor_at(tile, r, i * sizeof(float));
            UNROLL for (int p = 0; p < num_parts; p++)
                sums[r * num_parts + p] = product_plus(x, weights[p], sums[r * num_parts + p]);
        }
    }
}

INLINE void add_bf16(const int num_rows, const int num_parts, const Matrix *matrix, Tile *tile, Floats sums[]) {
    const int pairs = (matrix->in + 1) / 2;
    for (int i = 0; i < pairs; i++) {
        if (i % 8 == 0) ask(&tile->ahead);
        Ints weights[PANEL * PARTS];
        UNROLL for (int p = 0; p < num_parts; p++) weights[p] = bytes_at(part_at(tile, p, (size_t)i * LINE));
        UNROLL for (int r = 0; r < num_rows; r++) {
            Ints x = row_at(tile, r, (size_t)i * 4);
            UNROLL for (int p = 0; p < num_parts; p++)
                sums[r * num_parts + p] = bf16_products_plus(weights[p], x, sums[r * num_parts + p]);
        }
    }
}

// In whole numbers within a group, whose sums then are taken times the row's scale, and that of the weights' group where
// they have such.
INLINE void add_int8(const int in_groups, const int num_rows, const int num_parts, const Matrix *matrix, Tile *tile,
                     Floats sums[]) {
    const size_t groups = num_groups(matrix);
    for (size_t g = 0; g < groups; g++) {
        const size_t scale = groups * GROUP + g * sizeof(float), start = scale + groups * sizeof(float);
        ask(&tile->ahead);
        Ints counts[SUMS];
        UNROLL for (int i = 0; i < num_rows * num_parts; i++) counts[i] = row_at(tile, i / num_parts, start);
        UNROLL for (int quad = 0; quad < GROUP / 4; quad++) {
            Ints weights[PANEL * PARTS];
            UNROLL for (int p = 0; p < num_parts; p++)
                weights[p] = bytes_at(part_at(tile, p, (g * (GROUP / 4) + quad) * LINE));
            UNROLL for (int r = 0; r < num_rows; r++) {
                Ints x = row_at(tile, r, g * GROUP + quad * 4);
                UNROLL for (int p = 0; p < num_parts; p++)
                    counts[r * num_parts + p] = byte_products_plus(weights[p], x, counts[r * num_parts + p]);
            }
        }
        Floats scales[PANEL * PARTS];
        UNROLL for (int p = 0; p < num_parts; p++)
            if (in_groups) scales[p] = fp16_at(levels_at(tile, p, (groups * (GROUP / 4)) * LINE, g));
        UNROLL for (int r = 0; r < num_rows; r++) {
            Floats factor = factor_at(tile, r, scale), *to = &sums[r * num_parts];
            UNROLL for (int p = 0; p < num_parts; p++)
                to[p] = product_plus(converted(counts[r * num_parts + p]), in_groups ? scales[p] * factor : factor,
                                     to[p]);
        }
    }
}

INLINE void add_int4(const int num_rows, const int num_parts, const Matrix *matrix, Tile *tile, Floats sums[]) {
    const size_t groups = num_groups(matrix);
    for (size_t g = 0; g < groups; g++) {
        const size_t scale = scales_at(INT4, groups) + g * sizeof(float), sum = scale + 2 * groups * sizeof(float);
        const size_t first = g * NIBBLES_BYTES, levels = first + 4 * LINE;
        ask(&tile->ahead);
        Ints counts[SUMS];
        UNROLL for (int i = 0; i < num_rows * num_parts; i++) counts[i] = (Ints){0};
        UNROLL for (int eight = 0; eight < GROUP / 8; eight++) {
            Ints codes[PANEL * PARTS];
            UNROLL for (int p = 0; p < num_parts; p++) codes[p] = bytes_at(part_at(tile, p, first + eight * LINE));
            UNROLL for (int i = 0; i < 4; i++) {
                Ints weights[PANEL * PARTS];
                UNROLL for (int p = 0; p < num_parts; p++) weights[p] = two_codes(codes[p], i);
                UNROLL for (int r = 0; r < num_rows; r++) {
                    Ints x = row_at(tile, r, (g * GROUP + eight * 8 + i * 2) * 2), *to = &counts[r * num_parts];
                    UNROLL for (int p = 0; p < num_parts; p++) to[p] = word_products_plus(weights[p], x, to[p]);
                }
            }
        }
        UNROLL for (int p = 0; p < num_parts; p++) {
            Floats scales = fp16_at(levels_at(tile, p, levels, 0)), minima = fp16_at(levels_at(tile, p, levels, 1));
            UNROLL for (int r = 0; r < num_rows; r++) {
                Floats *to = &sums[r * num_parts + p], factor = scales * factor_at(tile, r, scale);
                *to = product_plus(minima, factor_at(tile, r, sum), *to);
                *to = product_plus(converted(counts[r * num_parts + p]), factor, *to);
            }
        }
    }
}

#endif
