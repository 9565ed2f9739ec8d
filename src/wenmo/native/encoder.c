// Sequences know nothing of each other. So where there are many, each thread takes some, one batch of rows after the other,
// through all layers, and waits for nobody: whoever is held up by other programs just takes fewer. Where there are too few
// for that, all threads go through the layers of all together, as in step.c. Either way a row is computed in one order.
#include "encoder.h"

#include <math.h>
#include <stdatomic.h>

#include "attention.h"
#include "vector.h"

enum { PANEL = 3 * BLOCK, ALIGNMENT = 64 };
enum { LEAST_ROWS = 48, MOST_ROWS = 128, ROUNDS = 4 };  // of a batch, where each thread has its own; batches for each

// Neighbouring sequences that go through the layers together.
typedef struct { int first, sequences, first_row, rows; } Batch;

typedef struct {
    float *input, *output;  // [rows of a batch, whatever a matrix takes or gives]
    char *prepared;         // the input, as a matrix wants it
} Buffers;

typedef struct {
    Pool *pool;
    const Encoder *encoder;
    const int64_t *ids, *segments;
    const int *lengths;
    float *hidden, *first;
    int num_batches, together;  // together: all threads share the one batch
    atomic_int taken;
    // In the workspace:
    int *starts;  // [sequences]: the first row of each
    Batch *batches;
    Buffers buffers;  // of the first thread
    char *attention;  // of each thread: keys and values of a head, and scratch
    size_t buffer_bytes, keys_bytes, attention_bytes;
} Run;

static int most(int a, int b) { return a > b ? a : b; }
static int least(int a, int b) { return a < b ? a : b; }
static int share(int number, int part, int parts) { return (int)((long)number * part / parts); }

static size_t carve(Run *r, const Encoder *e, int rows, int num_sequences, int longest, int threads, char *from) {
    const int own_rows = least(rows, MOST_ROWS + longest);
    size_t prepared = 0, own_prepared = 0, at = 0;
    for (int number = 0; number < e->num_layers; number++) {
        const EncoderLayer *layer = e->layers + number;
        const Matrix *all[] = {&layer->query_key_value, &layer->attention_out, &layer->up, &layer->down};
        for (int i = 0; i < 4; i++) {
            size_t bytes = prepared_bytes(all[i], rows), own_bytes = prepared_bytes(all[i], own_rows);
            prepared = bytes > prepared ? bytes : prepared;
            own_prepared = own_bytes > own_prepared ? own_bytes : own_prepared;
        }
    }
#define TAKE(name, bytes) name = (void *)(from + at), at += ((size_t)(bytes) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
    const size_t number = (size_t)(r->together ? rows : own_rows);
    TAKE(r->starts, sizeof(int) * (size_t)num_sequences);
    TAKE(r->batches, sizeof(Batch) * (size_t)num_sequences);
    const size_t before = at;
    TAKE(r->buffers.input, sizeof(float) * number * e->width);
    TAKE(r->buffers.output, sizeof(float) * number * most(3 * e->width, e->feed_forward));
    TAKE(r->buffers.prepared, r->together ? prepared : own_prepared);
    r->buffer_bytes = at - before;
    at += r->together ? 0 : r->buffer_bytes * (threads - 1);
    r->keys_bytes = (sizeof(float) * (size_t)longest * e->head_width + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    r->attention_bytes = 2 * r->keys_bytes + attention_bytes(e->head_width, 1);
    TAKE(r->attention, r->attention_bytes * threads);
#undef TAKE
    return at;
}

size_t encoder_bytes(const Encoder *encoder, int rows, int num_sequences, int longest, int threads) {
    Run apart = {0}, together = {.together = 1};
    const size_t bytes = carve(&apart, encoder, rows, num_sequences, longest, threads, NULL);
    const size_t others = carve(&together, encoder, rows, num_sequences, longest, threads, NULL);
    return bytes > others ? bytes : others;
}

// Batches ------------------------------------------------------------------------------------------------

// Sequences in their order, until a batch has its rows; how many batches there are.
static int cut(const int *lengths, int num_sequences, int rows_of_batch, Batch *batches) {
    int number = 0;
    Batch batch = {0};
    for (int i = 0; i < num_sequences; i++) {
        batch.sequences++, batch.rows += lengths[i];
        if (batch.rows < rows_of_batch && i + 1 < num_sequences) continue;
        batches[number++] = batch;
        batch = (Batch){i + 1, 0, batch.first_row + batch.rows, 0};
    }
    return number;
}

// Whether threads that take batches in turn would leave more than a fifth of their time unused.
static int uneven(const Batch *batches, int number, int rows, int threads) {
    int busy[threads], last = 0;
    memset(busy, 0, sizeof busy);
    for (int i = 0; i < number; i++) {
        int free = 0;
        for (int thread = 1; thread < threads; thread++)
            if (busy[thread] < busy[free]) free = thread;
        busy[free] += batches[i].rows;
        last = most(last, busy[free]);
    }
    return (long)last * threads * 4 > (long)rows * 5;
}

// Rows ---------------------------------------------------------------------------------------------------

// (x − mean) / √(mean((x − mean)²) + ε) · weight + bias (Ba et al. 2016, §3), in its place.
static void normalise(float *x, const LayerNorm *norm, int width, float epsilon) {
    const int whole = width / LANES * LANES;
    Vector sums = {0}, squares = {0};
    for (int i = 0; i < whole; i += LANES) sums += load(x + i);
    if (whole < width) sums += load_first(x + whole, width - whole);
    const float mean = sum_of(sums) / (float)width;
    for (int i = 0; i < whole; i += LANES) squares = fma_of(load(x + i) - mean, load(x + i) - mean, squares);
    float sum = sum_of(squares);
    for (int i = whole; i < width; i++) sum += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(sum / (float)width + epsilon);
    for (int i = 0; i < whole; i += LANES)
        store(x + i, fma_of((load(x + i) - mean) * scale, load(norm->weight + i), load(norm->bias + i)));
    for (int i = whole; i < width; i++) x[i] = (x[i] - mean) * scale * norm->weight[i] + norm->bias[i];
}

static void add(float *x, const float *y, int width) {
    for (int i = 0; i < width; i++) x[i] += y[i];
}

// x Φ(x) = max(x, 0) − |x| Φ(−|x|), the last by Abramowitz & Stegun 1964, 7.1.26: within 1.5e-7 of it.
static inline Vector gelu(Vector x) {
    const Vector size = (Vector)((Integers)x & 0x7fffffff);
    const Vector t = 1.0f / fma_of(size, all(0.3275911f * 0.70710678f), all(1.0f));
    Vector sum = fma_of(all(0.5f * 1.061405429f), t, all(0.5f * -1.453152027f));
    sum = fma_of(sum, t, all(0.5f * 1.421413741f));
    sum = fma_of(sum, t, all(0.5f * -0.284496736f));
    sum = fma_of(sum, t, all(0.5f * 0.254829592f));
    return larger(x, all(0)) - size * sum * t * exp_of(x * x * -0.5f);
}

static inline Vector sigmoid(Vector x) { return 1.0f / (exp_of(-x) + 1.0f); }

static inline __attribute__((always_inline)) Vector activated(const int activation, Vector x) {
    if (activation == GELU) return gelu(x);
    if (activation == GELU_TANH) return x * sigmoid(1.5957691f * fma_of(x * x * x, all(0.044715f), x));  // 2 √(2/π)
    return activation == SILU ? x * sigmoid(x) : larger(x, all(0));
}

static inline __attribute__((always_inline)) void activate_row(const int activation, float *x, int width) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) store(x + i, activated(activation, load(x + i)));
    if (i < width) store_first(x + i, activated(activation, load_first(x + i, width - i)), width - i);
}

static void activate(int activation, float *x, int width) {
    if (activation == GELU) activate_row(GELU, x, width);
    if (activation == GELU_TANH) activate_row(GELU_TANH, x, width);
    if (activation == RELU) activate_row(RELU, x, width);
    if (activation == SILU) activate_row(SILU, x, width);
}

static void embed(const Run *r, int row, int position) {
    const Encoder *e = r->encoder;
    const size_t D = (size_t)e->width;
    const float *word = e->words + (size_t)r->ids[row] * D, *place = e->positions + (size_t)position * D;
    const float *segment = e->segments + (r->segments ? (size_t)r->segments[row] * D : 0);
    float *x = r->hidden + (size_t)row * D;
    for (size_t i = 0; i < D; i++) x[i] = word[i] + place[i] + segment[i];
    normalise(x, &e->norm, e->width, e->epsilon);
}

// Phases -------------------------------------------------------------------------------------------------

// One of those that go through the layers with a batch.
typedef struct {
    const Run *run;
    const Batch *batch;
    Buffers buffers;
    char *attention;
    int number, members;
} Member;

static void meet(const Member *m) {
    if (m->members > 1) pool_barrier(m->run->pool);
}

// y = x W^T + b, of so many rows; x: of this member's share of them only.
static void multiply_all(const Member *m, const Matrix *matrix, const float *x, float *y, int rows) {
    const int from = share(rows, m->number, m->members), to = share(rows, m->number + 1, m->members);
    const int units = (matrix->out + PANEL - 1) / PANEL;
    prepare(matrix, x, rows, m->buffers.prepared, from, to);
    meet(m);
    const int first = share(units, m->number, m->members) * PANEL;
    const int last = least(share(units, m->number + 1, m->members) * PANEL, matrix->out);
    if (first < last) multiply(matrix, m->buffers.prepared, rows, y, matrix->out, first, last);
    meet(m);
}

static void place(const float *from, size_t stride, int rows, int width, int is_bf16, void *to) {
    for (int row = 0; row < rows; row++, from += stride)
        for (int i = 0; i < width; i++)
            if (is_bf16) ((uint16_t *)to)[(size_t)row * width + i] = to_bf16(from[i]);
            else ((float *)to)[(size_t)row * width + i] = from[i];
}

// Each head of each sequence by one member. only_first: of each sequence its first query alone, one row after the other.
static void attend_all(const Member *m, int only_first) {
    const Run *r = m->run;
    const Encoder *e = r->encoder;
    const int H = e->head_width, D = e->width;
    const size_t stride = 3 * (size_t)D;
    void *keys = m->attention, *values = m->attention + r->keys_bytes, *scratch = m->attention + 2 * r->keys_bytes;
    for (int part = m->number; part < m->batch->sequences * e->heads; part += m->members) {
        const int place_of = part / e->heads, sequence = m->batch->first + place_of, head = part % e->heads;
        const int length = r->lengths[sequence];
        const size_t row = (size_t)(r->starts[sequence] - m->batch->first_row), to = only_first ? (size_t)place_of : row;
        const float *from = m->buffers.output + row * stride + (size_t)head * H;
        place(from + D, stride, length, H, e->keys_are_bf16, keys);
        place(from + 2 * D, stride, length, H, e->keys_are_bf16, values);
        Heads heads = {.keys = keys, .values = values, .is_bf16 = e->keys_are_bf16, .head_width = H, .group = 1,
                       .tokens = only_first ? 1 : length, .all_keys = length, .scale = 1.0f / sqrtf((float)H)};
        attend(&heads, from, stride, m->buffers.input + to * D + (size_t)head * H, (size_t)D, scratch);
    }
}

static void embed_all(const Member *m) {
    const Run *r = m->run;
    const int begin = m->batch->first_row, rows = m->batch->rows;
    const int from = begin + share(rows, m->number, m->members), to = begin + share(rows, m->number + 1, m->members);
    for (int sequence = m->batch->first; sequence < m->batch->first + m->batch->sequences; sequence++) {
        const int start = r->starts[sequence], end = start + r->lengths[sequence];
        for (int row = most(start, from); row < least(end, to); row++) embed(r, row, row - start);
    }
}

// hidden += x, normed: of this member's share of the rows.
static void settle(const Member *m, float *hidden, const float *x, const LayerNorm *norm, int rows) {
    const Encoder *e = m->run->encoder;
    for (int row = share(rows, m->number, m->members); row < share(rows, m->number + 1, m->members); row++) {
        float *to = hidden + (size_t)row * e->width;
        add(to, x + (size_t)row * e->width, e->width);
        normalise(to, norm, e->width, e->epsilon);
    }
}

static void encode(const Member *m) {
    const Run *r = m->run;
    const Encoder *e = r->encoder;
    const int D = e->width, F = e->feed_forward;
    int rows = m->batch->rows;
    float *hidden = r->hidden + (size_t)m->batch->first_row * D, *input = m->buffers.input, *output = m->buffers.output;
    embed_all(m);
    for (int number = 0; number < e->num_layers; number++) {
        const EncoderLayer *layer = e->layers + number;
        const int only_first = r->first && number + 1 == e->num_layers;
        multiply_all(m, &layer->query_key_value, hidden, output, rows);
        attend_all(m, only_first);
        meet(m);
        if (only_first) {  // from here on those rows are all that there are
            rows = m->batch->sequences;
            hidden = r->first + (size_t)m->batch->first * D;
            for (int i = share(rows, m->number, m->members); i < share(rows, m->number + 1, m->members); i++)
                memcpy(hidden + (size_t)i * D, r->hidden + (size_t)r->starts[m->batch->first + i] * D, sizeof(float) * D);
        }
        multiply_all(m, &layer->attention_out, input, output, rows);
        settle(m, hidden, output, &layer->attention_norm, rows);
        multiply_all(m, &layer->up, hidden, output, rows);
        for (int row = share(rows, m->number, m->members); row < share(rows, m->number + 1, m->members); row++)
            activate(e->activation, output + (size_t)row * F, F);
        multiply_all(m, &layer->down, output, input, rows);
        settle(m, hidden, input, &layer->output_norm, rows);
    }
}

static void work(void *what, int thread) {
    Run *r = what;
    const size_t own = r->together ? 0 : r->buffer_bytes * (size_t)thread;
    Member member = {.run = r, .attention = r->attention + r->attention_bytes * (size_t)thread, .members = 1};
    member.buffers = (Buffers){(void *)((char *)r->buffers.input + own), (void *)((char *)r->buffers.output + own),
                               r->buffers.prepared + own};
    if (r->together) {
        member.number = thread, member.members = pool_threads(r->pool), member.batch = r->batches;
        encode(&member);
        return;
    }
    for (int taken; (taken = atomic_fetch_add(&r->taken, 1)) < r->num_batches;) {
        member.batch = r->batches + taken;
        encode(&member);
    }
}

static int all_below(const int64_t *numbers, int count, int limit) {
    for (int i = 0; numbers && i < count; i++)
        if (numbers[i] < 0 || numbers[i] >= limit) return 0;
    return 1;
}

int run_encoder(Pool *pool, const Encoder *encoder, const int64_t *ids, const int64_t *segments, int num_sequences,
                const int *lengths, float *hidden, float *first, void *workspace) {
    const int threads = pool_threads(pool);
    int rows = 0, longest = 0;
    for (int i = 0; i < num_sequences; i++) rows += lengths[i], longest = most(longest, lengths[i]);
    if (longest > encoder->num_positions || !all_below(ids, rows, encoder->num_words) ||
        !all_below(segments, rows, encoder->num_segments)) return 0;
    Run r = {.pool = pool, .encoder = encoder, .ids = ids, .segments = segments, .lengths = lengths, .hidden = hidden,
             .first = first};
    carve(&r, encoder, rows, num_sequences, longest, threads, workspace);
    r.num_batches = cut(lengths, num_sequences, least(most(rows / (threads * ROUNDS), LEAST_ROWS), MOST_ROWS), r.batches);
    r.together = threads > 1 && uneven(r.batches, r.num_batches, rows, threads);
    if (r.together) {
        carve(&r, encoder, rows, num_sequences, longest, threads, workspace);
        r.num_batches = cut(lengths, num_sequences, rows, r.batches);
    }
    for (int i = 0, row = 0; i < num_sequences; row += lengths[i], i++) r.starts[i] = row;
    pool_run(pool, work, &r);
    return 1;
}
