// The four kinds of products (matrix.h): rows made ready, and multiplied tile by tile (tiles.h). The outputs are gone
// through in panels, and each panel's weights are taken by all tiles of rows one after the other, out of the cache.
#include "tiles.h"
#include "vector.h"

int register_width(void) { return WIDTH; }

size_t prepared_bytes(const Matrix *matrix, int rows) { return row_bytes(matrix) * rows; }

// A group of a row as whole numbers of 8 bits or 16. What was added to the weights' codes of 8 bits to make them
// unsigned is taken back in the start of the sums; the minima of those of 4 are multiplied by the group's sum.
INLINE void round_group(const int to_bits, const float *x, void *to, float *scale, int32_t *start, float *sum) {
    const float most = to_bits == 8 ? 127.0f : 32767.0f;
    int32_t bits[GROUP], largest_bits = 0;
    uint32_t total = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < GROUP; i++) {  // without its sign a number is as large as its bits; NaN is larger than all
        int32_t magnitude = bits[i] & 0x7FFFFFFF;
        largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    float inverse = largest > 1e-30f && largest < 3.4e38f ? most / largest : 0.0f;
    for (int i = 0; i < GROUP; i++) {
        // 1.5 * 2^23 more leaves no place for a fraction: the nearest whole number, ties to even, in the low bits.
        float rounded = x[i] * inverse + 12582912.0f;
        memcpy(bits + i, &rounded, sizeof rounded);
        total += (uint32_t)bits[i] - 0x4B400000u;
        if (to_bits == 8) ((int8_t *)to)[i] = (int8_t)bits[i];
        else ((int16_t *)to)[i] = (int16_t)bits[i];
    }
    *scale = largest * (1 / most);
    *start = (int32_t)(0u - 128u * total);  // of NaN and infinities the codes are no numbers: these wrap
    *sum = *scale * (float)(int32_t)total;
}

void prepare(const Matrix *matrix, const float *x, int rows, void *prepared, int from_row, int to_row) {
    (void)rows;
    for (int row = from_row; row < to_row; row++) {
        const float *from = x + (size_t)row * matrix->in;
        char *to = (char *)prepared + (size_t)row * row_bytes(matrix);
        if (matrix->kind == FP32) memcpy(to, from, (size_t)matrix->in * sizeof(float));
        if (matrix->kind == BF16) {
            for (int i = 0; i < matrix->in; i++) ((uint16_t *)to)[i] = to_bf16(from[i]);
            if (matrix->in % 2) ((uint16_t *)to)[matrix->in] = 0;
        }
        if (matrix->kind < INT8) continue;
        int groups = (int)num_groups(matrix);
        float *scales = (float *)(to + scales_at(matrix->kind, groups)), *sums = scales + 2 * groups;
        int32_t *starts = (int32_t *)(scales + groups);
        for (int i = 0; i < groups; i++) {
            const float *group = from + i * GROUP;
            float last[GROUP];
            if ((i + 1) * GROUP > matrix->in) {
                memset(last, 0, sizeof last);
                group = memcpy(last, group, (matrix->in - i * GROUP) * sizeof(float));
            }
            if (matrix->kind == INT4) round_group(16, group, to + i * GROUP * 2, scales + i, starts + i, sums + i);
            else round_group(8, group, to + i * GROUP, scales + i, starts + i, sums + i);
        }
    }
}

// Products ---------------------------------------------------------------------------------------------

typedef struct {
    float *at;
    size_t row_step;  // numbers
    int count;        // outputs from here to the last that is asked for
} Outputs;

INLINE void multiply_tile(const int kind, const int num_rows, const int num_blocks, const Matrix *matrix, int block,
                          Tile tile, Outputs y) {
    const int num_parts = num_blocks * PARTS;
    Floats sums[SUMS];
    UNROLL for (int i = 0; i < num_rows * num_parts; i++) sums[i] = floats_of(0);
    if (kind == FP32) add_fp32(num_rows, num_parts, matrix, &tile, sums);
    if (kind == BF16) add_bf16(num_rows, num_parts, matrix, &tile, sums);
    if (kind == INT8) add_int8(0, num_rows, num_parts, matrix, &tile, sums);
    if (kind == INT8_GROUPS) add_int8(1, num_rows, num_parts, matrix, &tile, sums);
    if (kind == INT4) add_int4(num_rows, num_parts, matrix, &tile, sums);
    UNROLL for (int p = 0; p < num_parts; p++) {
        const int out = block * BLOCK + p * WIDTH, count = y.count - p * WIDTH;
        Floats scale = kind == INT8 ? floats_at(matrix->scales + out) : floats_of(1);
        Floats bias = matrix->bias ? floats_at(matrix->bias + out) : floats_of(0);
        UNROLL for (int r = 0; r < num_rows; r++) {
            Floats values = product_plus(sums[r * num_parts + p], scale, bias);
            store_some(y.at + r * y.row_step + p * WIDTH, values, count);
        }
    }
}

// The tile of just this size. Blocks that are left over make no panel, and go one by one.
INLINE void multiply_rows(const int kind, int num_rows, int num_blocks, const Matrix *matrix, int block, Tile tile,
                          Outputs y) {
    const int most = kind < INT8 ? WIDE_ROWS : BYTES_ROWS;
    const int together = num_blocks == PANEL ? PANEL : 1;
    for (int b = 0; b < num_blocks; b += together, block += together) {
        switch (num_rows) {
#define CASE(ROWS)                                                                                          \
    case ROWS:                                                                                              \
        if (ROWS > most) break;                                                                             \
        if (together == PANEL) multiply_tile(kind, ROWS < most ? ROWS : most, PANEL, matrix, block, tile, y); \
        else multiply_tile(kind, ROWS < most ? ROWS : most, 1, matrix, block, tile, y);                     \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
        }
        tile.codes += together * tile.block_step;
        y.at += together * BLOCK, y.count -= together * BLOCK;
    }
}

typedef void Multiply(int, int, const Matrix *, int, Tile, Outputs);

#define OF_KIND(NAME, KIND)                                                                                 \
    static void NAME(int num_rows, int num_blocks, const Matrix *matrix, int block, Tile tile, Outputs y) { \
        multiply_rows(KIND, num_rows, num_blocks, matrix, block, tile, y);                                  \
    }
OF_KIND(multiply_fp32, FP32)
OF_KIND(multiply_bf16, BF16)
OF_KIND(multiply_int8, INT8)
OF_KIND(multiply_int4, INT4)
OF_KIND(multiply_int8_groups, INT8_GROUPS)
static Multiply *const of_kind[] = {multiply_fp32, multiply_bf16, multiply_int8, multiply_int4, multiply_int8_groups};

void multiply(const Matrix *matrix, const void *prepared, int rows, float *y, int y_stride, int from_out, int to_out) {
    const int end_block = (to_out + BLOCK - 1) / BLOCK, most = matrix->kind < INT8 ? WIDE_ROWS : BYTES_ROWS;
    const int lines = (matrix->kind == INT4 ? NIBBLES_BYTES / LINE : 8) * PANEL;  // used from `ask` to `ask`
    const int num_tiles = (rows + most - 1) / most;
    const size_t row_step = row_bytes(matrix), block_step = block_bytes(matrix);
    const char *codes = matrix->codes, *end = codes + end_block * block_step;
    for (int block = from_out / BLOCK; block < end_block; block += PANEL) {
        const int num_blocks = end_block - block < PANEL ? end_block - block : PANEL;
        const char *panel = codes + block * block_step, *next = panel + num_blocks * block_step;
        for (int i = 0; i < num_tiles; i++) {
            const int row = i * most, num_rows = rows - row < most ? rows - row : most;
            Ahead ahead = {next + PANEL * block_step * i / num_tiles / LINE * LINE, end,
                           (lines + num_tiles - 1) / num_tiles};
            Tile tile = {(const char *)prepared + row * row_step, panel, row_step, block_step, ahead};
            Outputs to = {y + (size_t)row * y_stride + block * BLOCK, y_stride, to_out - block * BLOCK};
            of_kind[matrix->kind](num_rows, num_blocks, matrix, block, tile, to);
        }
    }
}
