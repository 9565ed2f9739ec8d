// All threads go through the layers together and meet after each phase. A phase shares out rows (norms, rotary positions,
// activations), outputs of a matrix, or heads of spans (attention); a number is computed by one thread alone, so that
// their number changes nothing. Residuals and norms are fp32.
#include "step.h"

#include <math.h>
#include <stdatomic.h>

#include "attention.h"
#include "vector.h"

typedef struct {
    Pool *pool;
    const Model *model;
    const Span *spans;
    const Cache *caches;
    const int *scored;
    int rows, num_spans, num_scored, parts_of_attention;
    float *hidden, *scores;
    // In the workspace:
    float *turns;     // [rows, head_width]: cosines, then sines of a row's position
    float *input;     // [rows, width, or whatever a matrix takes]
    float *output;    // [rows, whatever a matrix gives]
    char *prepared;   // the input, as a matrix wants it
    char *attention;  // each thread's scratch
    size_t attention_bytes;
    int *positions, *span_of;  // [rows]
    atomic_int *taken;         // [layers]: parts of attention that somebody does
} Step;

enum { PANEL = 3 * BLOCK, ALIGNMENT = 64, TOKENS_OF_PART = 32, TOKENS_ASKED = 128 };

static int most(int a, int b) { return a > b ? a : b; }
static int joint_width(const Model *m) { return (m->heads + 2 * m->key_heads) * m->head_width; }
static int share(int number, int part, int parts) { return (int)((long)number * part / parts); }

static size_t carve(Step *s, const Model *m, int rows, int scored, int threads, char *from) {
    const Layer *layer = m->layers;
    const int attended = m->heads * m->head_width;
    const int widest_in = most(m->width, most(attended, m->feed_forward));
    const int widest_out = most(joint_width(m), most(2 * m->feed_forward, m->width));
    const int inputs = most(rows, scored);
    size_t prepared = prepared_bytes(m->vocabulary, scored);
    const Matrix *all[] = {&layer->query_key_value, &layer->attention_out, &layer->gate_up, &layer->down};
    for (int layer_number = 0; layer_number < m->num_layers; layer_number++)  // they need not be of one kind
        for (int i = 0; i < 4; i++) {
            const Matrix *matrix = (const Matrix *)((const char *)all[i] + sizeof(Layer) * (size_t)layer_number);
            size_t bytes = prepared_bytes(matrix, rows);
            if (bytes > prepared) prepared = bytes;
        }
    s->attention_bytes = attention_bytes(m->head_width, m->heads / m->key_heads);
    size_t at = 0;
#define TAKE(name, bytes) s->name = (void *)(from + at), at += ((size_t)(bytes) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
    TAKE(turns, sizeof(float) * (size_t)rows * m->head_width);
    TAKE(input, sizeof(float) * (size_t)inputs * widest_in);
    TAKE(output, sizeof(float) * (size_t)rows * widest_out);
    TAKE(prepared, prepared);
    TAKE(attention, s->attention_bytes * threads);
    TAKE(positions, sizeof(int) * (size_t)rows);
    TAKE(span_of, sizeof(int) * (size_t)rows);
    TAKE(taken, sizeof(atomic_int) * (size_t)m->num_layers);
#undef TAKE
    return at;
}

size_t workspace_bytes(const Model *model, int rows, int scored, int threads) {
    Step s;
    return carve(&s, model, rows, scored, threads, NULL);
}

// Rows ---------------------------------------------------------------------------------------------------

// x / √(mean(x²) + ε) · weight (Zhang & Sennrich 2019, §3).
static void normalise(const float *x, const float *weight, int width, float epsilon, float *y) {
    Vector squares = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) squares = fma_of(load(x + i), load(x + i), squares);
    float sum = sum_of(squares);
    for (; i < width; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)width + epsilon);
    for (i = 0; i + LANES <= width; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
    for (; i < width; i++) y[i] = x[i] * scale * weight[i];
}

static void add(float *x, const float *y, int width) {
    for (int i = 0; i < width; i++) x[i] += y[i];
}

// silu(gate) · up (Shazeer 2020, §2).
static void activate(const float *gate, const float *up, int width, float *y) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Vector x = load(gate + i);
        store(y + i, x / (exp_of(-x) + 1.0f) * load(up + i));
    }
    for (; i < width; i++) y[i] = gate[i] / (exp_of(all(-gate[i]))[0] + 1.0f) * up[i];
}

// Pairs (x_0, x_{H/2}), (x_1, x_{H/2+1}), … turned by the row's angles (Su et al. 2021, §3.4).
static void rotate(float *x, const float *turns, int head_width) {
    const int half = head_width / 2;
    const float *cosine = turns, *sine = turns + half;
    for (int i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosine[i] - second * sine[i];
        x[i + half] = second * cosine[i] + first * sine[i];
    }
}

static void place(const float *x, int width, int is_bf16, void *cache, size_t at) {
    if (!is_bf16) {
        memcpy((float *)cache + at, x, sizeof(float) * (size_t)width);
        return;
    }
    uint16_t *to = (uint16_t *)cache + at;
    for (int i = 0; i < width; i++) to[i] = to_bf16(x[i]);
}

static void find_positions(const Step *s, int from, int to) {
    const Model *m = s->model;
    const int half = m->head_width / 2;
    for (int number = 0; number < s->num_spans; number++) {
        const Span *span = s->spans + number;
        for (int row = most(from, span->first_row); row < to && row < span->first_row + span->rows; row++) {
            float *turns = s->turns + (size_t)row * m->head_width;
            s->span_of[row] = number;
            s->positions[row] = span->start + row - span->first_row;
            for (int i = 0; i < half; i++) {
                float angle = (float)s->positions[row] * m->frequencies[i];
                turns[i] = cosf(angle) * m->rotary_factor;
                turns[half + i] = sinf(angle) * m->rotary_factor;
            }
        }
    }
}

// Queries, keys and values of a row: normed where the model does so, turned; keys and values go where they stay.
static void settle_row(const Step *s, int number, int row) {
    const Model *m = s->model;
    const Layer *layer = m->layers + number;
    const Span *span = s->spans + s->span_of[row];
    const Cache *cache = s->caches + (size_t)span->cache * m->num_layers + number;
    const int H = m->head_width;
    const float *turns = s->turns + (size_t)row * H;
    float *query = s->output + (size_t)row * joint_width(m), *key = query + m->heads * H, *value = key + m->key_heads * H;
    for (int head = 0; head < m->heads; head++) {
        float *x = query + head * H;
        if (layer->query_norm) normalise(x, layer->query_norm, H, m->epsilon, x);
        rotate(x, turns, H);
    }
    for (int head = 0; head < m->key_heads; head++) {
        float *x = key + head * H;
        if (layer->key_norm) normalise(x, layer->key_norm, H, m->epsilon, x);
        rotate(x, turns, H);
        size_t at = (size_t)span->offset + ((size_t)head * span->positions + s->positions[row]) * H;
        place(x, H, m->cache_is_bf16, cache->keys, at);
        place(value + head * H, H, m->cache_is_bf16, cache->values, at);
    }
}

// Attention ----------------------------------------------------------------------------------------------

// A part: one key head, of at most TOKENS_OF_PART tokens of a span. Parts are taken one after the other by whoever is free.
typedef struct {
    const Span *span;
    int first, head;  // of its tokens, of the key heads
    const char *keys, *values;
} Part;

static Part part_of(const Step *s, int layer, int number) {
    const Model *m = s->model;
    const Span *span = s->spans;
    int tile = number / m->key_heads;
    for (int tiles; tile >= (tiles = (span->rows + TOKENS_OF_PART - 1) / TOKENS_OF_PART); span++) tile -= tiles;
    const int head = number % m->key_heads;
    const Cache *cache = s->caches + (size_t)span->cache * m->num_layers + layer;
    const size_t at = ((size_t)span->offset + (size_t)head * span->positions * m->head_width) * (m->cache_is_bf16 ? 2 : 4);
    return (Part){span, tile * TOKENS_OF_PART, head, (const char *)cache->keys + at, (const char *)cache->values + at};
}

// The beginning of what another part reads is on its way while this one is computed.
static void ask_for(const Step *s, const Part *part) {
    const int position = part->span->start + part->first, tokens = position < TOKENS_ASKED ? position : TOKENS_ASKED;
    const size_t bytes = (size_t)tokens * s->model->head_width * (s->model->cache_is_bf16 ? 2 : 4);
    for (size_t at = 0; at < bytes; at += ALIGNMENT) {
        __builtin_prefetch(part->keys + at);
        __builtin_prefetch(part->values + at);
    }
}

static void attend_parts(Step *s, int number, int thread) {
    const Model *m = s->model;
    const int H = m->head_width, group = m->heads / m->key_heads, stride = joint_width(m);
    for (int taken; (taken = atomic_fetch_add(&s->taken[number], 1)) < s->parts_of_attention;) {
        const Part part = part_of(s, number, taken);
        if (taken + 1 < s->parts_of_attention) {
            const Part next = part_of(s, number, taken + 1);
            if (next.span->rows == 1) ask_for(s, &next);
        }
        const int rest = part.span->rows - part.first;
        Heads heads = {
            .keys = part.keys, .values = part.values, .is_bf16 = m->cache_is_bf16, .head_width = H,
            .start = part.span->start + part.first, .tokens = rest < TOKENS_OF_PART ? rest : TOKENS_OF_PART, .group = group,
            .window = m->layers[number].window, .scale = 1.0f / sqrtf((float)H),
        };
        const size_t row = (size_t)part.span->first_row + part.first, width = (size_t)m->heads * H;
        const size_t head = (size_t)part.head * group * H;
        attend(&heads, s->output + row * stride + head, stride, s->input + row * width + head, width,
               s->attention + s->attention_bytes * thread);
    }
}

// Phases -------------------------------------------------------------------------------------------------

// Whole panels of the product where there are enough of them: what is left over of one costs as much as the whole.
static void multiply_share(const Step *s, const Matrix *matrix, int rows, float *y, int y_stride, int thread) {
    const int threads = pool_threads(s->pool), panels = (matrix->out + PANEL - 1) / PANEL;
    const int unit = panels < 4 * threads ? BLOCK : PANEL, units = (matrix->out + unit - 1) / unit;
    const int from = share(units, thread, threads) * unit, to = share(units, thread + 1, threads) * unit;
    if (from < to) multiply(matrix, s->prepared, rows, y, y_stride, from, to < matrix->out ? to : matrix->out);
}

typedef struct {
    Step step;
    const Matrix *matrix;
    const float *x;
    float *y;
} Product;

static void work_on_product(void *what, int thread) {
    const Product *p = what;
    const int rows = p->step.rows, threads = pool_threads(p->step.pool);
    prepare(p->matrix, p->x, rows, p->step.prepared, share(rows, thread, threads), share(rows, thread + 1, threads));
    pool_barrier(p->step.pool);
    multiply_share(&p->step, p->matrix, rows, p->y, p->matrix->out, thread);
}

void run_product(Pool *pool, const Matrix *matrix, const float *x, int rows, float *y, void *prepared) {
    Product product = {{.pool = pool, .rows = rows, .prepared = prepared}, matrix, x, y};
    pool_run(pool, work_on_product, &product);
}

static void work(void *what, int thread) {
    Step *s = what;
    const Model *m = s->model;
    const int D = m->width, F = m->feed_forward, rows = s->rows, threads = pool_threads(s->pool);
    const int from = share(rows, thread, threads), to = share(rows, thread + 1, threads);
    find_positions(s, from, to);
    for (int number = 0; number < m->num_layers; number++) {
        const Layer *layer = m->layers + number;
        for (int row = from; row < to; row++) {
            float *hidden = s->hidden + (size_t)row * D;
            if (number) add(hidden, s->output + (size_t)row * D, D);  // the layer before
            normalise(hidden, layer->attention_norm, D, m->epsilon, s->input + (size_t)row * D);
        }
        prepare(&layer->query_key_value, s->input, rows, s->prepared, from, to);
        pool_barrier(s->pool);
        multiply_share(s, &layer->query_key_value, rows, s->output, joint_width(m), thread);
        pool_barrier(s->pool);
        for (int row = from; row < to; row++) settle_row(s, number, row);
        pool_barrier(s->pool);
        attend_parts(s, number, thread);
        pool_barrier(s->pool);
        prepare(&layer->attention_out, s->input, rows, s->prepared, from, to);
        pool_barrier(s->pool);
        multiply_share(s, &layer->attention_out, rows, s->output, D, thread);
        pool_barrier(s->pool);
        for (int row = from; row < to; row++) {
            float *hidden = s->hidden + (size_t)row * D;
            add(hidden, s->output + (size_t)row * D, D);
            normalise(hidden, layer->feed_forward_norm, D, m->epsilon, s->input + (size_t)row * D);
        }
        prepare(&layer->gate_up, s->input, rows, s->prepared, from, to);
        pool_barrier(s->pool);
        multiply_share(s, &layer->gate_up, rows, s->output, 2 * F, thread);
        pool_barrier(s->pool);
        for (int row = from; row < to; row++) {
            const float *gate = s->output + (size_t)row * 2 * F;
            activate(gate, gate + F, F, s->input + (size_t)row * F);
        }
        prepare(&layer->down, s->input, rows, s->prepared, from, to);
        pool_barrier(s->pool);
        multiply_share(s, &layer->down, rows, s->output, D, thread);
        pool_barrier(s->pool);
    }
    const int first = share(s->num_scored, thread, threads), last = share(s->num_scored, thread + 1, threads);
    for (int i = first; i < last; i++) {
        float *hidden = s->hidden + (size_t)s->scored[i] * D;
        add(hidden, s->output + (size_t)s->scored[i] * D, D);
        normalise(hidden, m->final_norm, D, m->epsilon, s->input + (size_t)i * D);
    }
    if (!s->num_scored) return;
    prepare(m->vocabulary, s->input, s->num_scored, s->prepared, first, last);
    pool_barrier(s->pool);
    multiply_share(s, m->vocabulary, s->num_scored, s->scores, m->vocabulary->out, thread);
}

void run_step(Pool *pool, const Model *model, int rows, float *hidden, int num_spans, const Span *spans, const Cache *caches,
              int num_scored, const int *scored, float *scores, void *workspace) {
    Step s = {.pool = pool, .model = model, .spans = spans, .caches = caches, .scored = scored, .rows = rows,
              .num_spans = num_spans, .num_scored = num_scored, .hidden = hidden, .scores = scores};
    carve(&s, model, rows, num_scored, pool_threads(pool), workspace);
    for (int i = 0; i < num_spans; i++)
        s.parts_of_attention += (spans[i].rows + TOKENS_OF_PART - 1) / TOKENS_OF_PART * model->key_heads;
    for (int i = 0; i < model->num_layers; i++) atomic_init(&s.taken[i], 0);
    pool_run(pool, work, &s);
}
