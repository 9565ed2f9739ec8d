// Two ways through the layers. Of many rows the threads take chunks, in turns: a turn ends one layer of a chunk and begins
// the next, so that what a chunk has become stays in one processor's cache, and whoever is held up by other programs just
// takes fewer. Of few rows, which cost what reading the weights costs, all threads go through each phase together, each
// with its share of a matrix, and meet after it. A number is computed by one thread alone and in one order: neither their
// number nor the way changes it. Residuals and norms are fp32.
#include "step.h"

#include <math.h>

#include "attention.h"
#include "rows.h"

enum { PANEL = 3 * BLOCK, ALIGNMENT = 64, TOKENS_OF_PART = 32, TOKENS_ASKED = 128 };
enum { LEAST_ROWS = 32, TURNS = 4 };  // of a chunk; of each thread in a layer, so that all end at about the same time

static int most(int a, int b) { return a > b ? a : b; }

static int rows_of_chunk(int rows, int threads) {
    const int wanted = (rows / (TURNS * threads) + 7) / 8 * 8;
    return wanted < LEAST_ROWS ? LEAST_ROWS : wanted < MOST_ROWS ? wanted : MOST_ROWS;
}

static int chunks_of(int rows, int threads) {
    const int size = rows_of_chunk(rows, threads);
    return rows < 2 * LEAST_ROWS * threads ? 0 : (rows + size - 1) / size;
}

static size_t carve(Step *s, const Model *m, int rows, int scored, int threads, char *from) {
    const Layer *layer = m->layers;
    const int attended = m->heads * m->head_width;
    const int widest_in = most(m->width, most(attended, m->feed_forward)), widest_out = most(2 * m->feed_forward, m->width);
    const int chunks = chunks_of(rows, threads), own_rows = chunks ? MOST_ROWS : rows, places = chunks ? threads : 1;
    size_t prepared = 0, at = 0;
    const Matrix *all[] = {&layer->query_key_value, &layer->attention_out, &layer->gate_up, &layer->down};
    for (int layer_number = 0; layer_number < m->num_layers; layer_number++)  // they need not be of one kind
        for (int i = 0; i < 4; i++) {
            const Matrix *matrix = (const Matrix *)((const char *)all[i] + sizeof(Layer) * (size_t)layer_number);
            size_t bytes = prepared_bytes(matrix, own_rows);
            if (bytes > prepared) prepared = bytes;
        }
#define UP(bytes) (((size_t)(bytes) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
#define TAKE(name, bytes) s->name = (void *)(from + at), at += UP(bytes)
    s->num_chunks = chunks;
    s->input_step = UP(sizeof(float) * (size_t)own_rows * widest_in);
    s->output_step = UP(sizeof(float) * (size_t)own_rows * widest_out);
    s->prepared_step = UP(prepared);
    s->attention_bytes = UP(attention_bytes(m->head_width, m->heads / m->key_heads));
    TAKE(turns, sizeof(float) * (size_t)rows * m->head_width);
    TAKE(joint, sizeof(float) * (size_t)rows * joint_width(m));
    TAKE(input, s->input_step * places);
    TAKE(output, s->output_step * places);
    TAKE(prepared, s->prepared_step * places);
    TAKE(attention, s->attention_bytes * threads);
    TAKE(last, sizeof(float) * (size_t)scored * m->width);
    TAKE(prepared_last, prepared_bytes(m->vocabulary, scored));
    TAKE(positions, sizeof(int) * (size_t)rows);
    TAKE(span_of, sizeof(int) * (size_t)rows);
    TAKE(taken, sizeof(atomic_int) * (size_t)m->num_layers);
    TAKE(done, sizeof(atomic_int) * (size_t)chunks);
#undef TAKE
#undef UP
    return at;
}

size_t workspace_bytes(const Model *model, int rows, int scored, int threads) {
    Step s;
    return carve(&s, model, rows, scored, threads, NULL);
}

// Attention ----------------------------------------------------------------------------------------------

// Of neighbouring tokens of a span, the first one's row being `row`, with one key head. out: the first one's.
static void attend_to(const Step *s, int number, int row, int tokens, int head, float *out, void *scratch) {
    const Model *m = s->model;
    const Span *span = s->spans + s->span_of[row];
    const Cache *cache = s->caches + (size_t)span->cache * m->num_layers + number;
    const int H = m->head_width, group = m->heads / m->key_heads, stride = joint_width(m);
    const size_t at = ((size_t)span->offset + (size_t)head * span->positions * H) * (m->cache_is_bf16 ? 2 : 4);
    Heads heads = {
        .keys = (const char *)cache->keys + at, .values = (const char *)cache->values + at, .is_bf16 = m->cache_is_bf16,
        .head_width = H, .start = s->positions[row], .tokens = tokens, .group = group, .window = m->layers[number].window,
        .scale = 1.0f / sqrtf((float)H),
    };
    const size_t first = (size_t)head * group * H;
    attend(&heads, s->joint + (size_t)row * stride + first, stride, out + first, (size_t)m->heads * H, scratch);
}

// In chunks ----------------------------------------------------------------------------------------------

static void multiply_own(const Matrix *matrix, const Buffers *own, int rows, float *y, int y_stride) {
    prepare(matrix, own->input, rows, own->prepared, 0, rows);
    multiply(matrix, own->prepared, rows, y, y_stride, 0, matrix->out);
}

static void begin_layer(const Step *s, int number, int first_row, int rows, const Buffers *own) {
    const Model *m = s->model;
    const Layer *layer = m->layers + number;
    const int D = m->width, J = joint_width(m);
    for (int i = 0; i < rows; i++)
        normalise(s->hidden + (size_t)(first_row + i) * D, layer->attention_norm, D, m->epsilon, own->input + (size_t)i * D);
    multiply_own(&layer->query_key_value, own, rows, s->joint + (size_t)first_row * J, J);
    for (int i = 0; i < rows; i++) settle_row(s, number, first_row + i);
}

// row: those that go on, in their order.
static void end_layer(const Step *s, int number, const int *row, int rows, const Buffers *own) {
    const Model *m = s->model;
    const Layer *layer = m->layers + number;
    const int D = m->width, F = m->feed_forward;
    for (int i = 0, tokens; i < rows; i += tokens) {
        tokens = 1;
        while (tokens < TOKENS_OF_PART && i + tokens < rows && row[i + tokens] == row[i] + tokens
               && s->span_of[row[i + tokens]] == s->span_of[row[i]])
            tokens++;
        for (int head = 0; head < m->key_heads; head++)
            attend_to(s, number, row[i], tokens, head, own->input + (size_t)i * m->heads * m->head_width, own->attention);
    }
    multiply_own(&layer->attention_out, own, rows, own->output, D);
    for (int i = 0; i < rows; i++) {
        float *hidden = s->hidden + (size_t)row[i] * D;
        add(hidden, own->output + (size_t)i * D, D);
        normalise(hidden, layer->feed_forward_norm, D, m->epsilon, own->input + (size_t)i * D);
    }
    multiply_own(&layer->gate_up, own, rows, own->output, 2 * F);
    for (int i = 0; i < rows; i++) {
        const float *gate = own->output + (size_t)i * 2 * F;
        activate(gate, gate + F, F, own->input + (size_t)i * F);
    }
    multiply_own(&layer->down, own, rows, own->output, D);
    for (int i = 0; i < rows; i++) add(s->hidden + (size_t)row[i] * D, own->output + (size_t)i * D, D);
}

// Those of a chunk that go on into the end of a layer: after the last one nobody asks but for those that are scored.
static int rows_that_go_on(const Step *s, int is_last, int from, int to, int *row) {
    int number = 0;
    if (!is_last)
        for (int i = from; i < to; i++) row[number++] = i;
    else
        for (int i = 0; i < s->num_scored; i++)
            if (s->scored[i] >= from && s->scored[i] < to) row[number++] = s->scored[i];
    return number;
}

// Turns are taken in the order of layers, and of chunks in a layer. A row sees keys of earlier rows, never of later ones.
static void work_in_chunks(const Step *s, int thread) {
    const Model *m = s->model;
    const int size = rows_of_chunk(s->rows, pool_threads(s->pool)), num_turns = (m->num_layers + 1) * s->num_chunks;
    const Buffers own = {
        (float *)((char *)s->input + s->input_step * thread), (float *)((char *)s->output + s->output_step * thread),
        s->prepared + s->prepared_step * thread, s->attention + s->attention_bytes * thread,
    };
    for (int turn; (turn = atomic_fetch_add(s->taken, 1)) < num_turns;) {
        const int layer = turn / s->num_chunks, chunk = turn % s->num_chunks;  // that begins
        const int from = chunk * size, to = from + size < s->rows ? from + size : s->rows;
        if (layer == 0) find_positions(s, from, to);
        else {
            int row[MOST_ROWS];
            const int number = rows_that_go_on(s, layer == m->num_layers, from, to, row);
            for (int earlier = 0; number && earlier <= chunk; earlier++) pool_await(s->pool, s->done + earlier, (unsigned)layer);
            end_layer(s, layer - 1, row, number, &own);
        }
        if (layer == m->num_layers) continue;  // a chunk of which nobody asks anything is here before its keys are made
        begin_layer(s, layer, from, to - from, &own);
        pool_advance(s->pool, s->done + chunk);
    }
    pool_barrier(s->pool);
}

// Together -----------------------------------------------------------------------------------------------

// A part of attention: one key head, of at most TOKENS_OF_PART tokens of a span. Parts are taken one after the other by
// whoever is free.
typedef struct { const Span *span; int first, head; } Part;  // first: of its tokens

static Part part_of(const Step *s, int number) {
    const Span *span = s->spans;
    int tile = number / s->model->key_heads;
    for (int tiles; tile >= (tiles = (span->rows + TOKENS_OF_PART - 1) / TOKENS_OF_PART); span++) tile -= tiles;
    return (Part){span, tile * TOKENS_OF_PART, number % s->model->key_heads};
}

// Of the memory, the beginning of what a part reads.
static void ask_for(const Step *s, int number, const Part *part) {
    const Model *m = s->model;
    const Cache *cache = s->caches + (size_t)part->span->cache * m->num_layers + number;
    const size_t token_bytes = (size_t)m->head_width * (m->cache_is_bf16 ? 2 : 4);
    const size_t first = (size_t)part->span->offset * (m->cache_is_bf16 ? 2 : 4) + part->head * part->span->positions * token_bytes;
    const int position = part->span->start, tokens = position < TOKENS_ASKED ? position : TOKENS_ASKED;
    for (size_t at = first; at < first + tokens * token_bytes; at += ALIGNMENT) {
        __builtin_prefetch((const char *)cache->keys + at);
        __builtin_prefetch((const char *)cache->values + at);
    }
}

// The next part is taken before this one is computed, so that its beginning is on its way meanwhile.
static void attend_parts(const Step *s, int number, int thread) {
    for (int taken = atomic_fetch_add(&s->taken[number], 1), next; taken < s->parts_of_attention; taken = next) {
        next = atomic_fetch_add(&s->taken[number], 1);
        if (next < s->parts_of_attention) {
            const Part following = part_of(s, next);
            if (following.span->rows == 1) ask_for(s, number, &following);
        }
        const Part part = part_of(s, taken);
        const int rest = part.span->rows - part.first, row = part.span->first_row + part.first;
        attend_to(s, number, row, rest < TOKENS_OF_PART ? rest : TOKENS_OF_PART, part.head,
                  s->input + (size_t)row * s->model->heads * s->model->head_width,
                  s->attention + s->attention_bytes * thread);
    }
}

// Whole panels of the product where there are enough of them: what is left over of one costs as much as the whole.
static void multiply_share(Pool *pool, const Matrix *matrix, const char *prepared, int rows, float *y, int thread) {
    const int threads = pool_threads(pool), panels = (matrix->out + PANEL - 1) / PANEL;
    const int unit = panels < 4 * threads ? BLOCK : PANEL, units = (matrix->out + unit - 1) / unit;
    const int from = share(units, thread, threads) * unit, to = share(units, thread + 1, threads) * unit;
    if (from < to) multiply(matrix, prepared, rows, y, matrix->out, from, to < matrix->out ? to : matrix->out);
}

// Rows from … to − 1 are this thread's to make ready.
static void multiply_together(Pool *pool, const Matrix *matrix, const float *x, int rows, int from, int to, char *prepared,
                              float *y, int thread) {
    prepare(matrix, x, rows, prepared, from, to);
    pool_barrier(pool);
    multiply_share(pool, matrix, prepared, rows, y, thread);
    pool_barrier(pool);
}

static void work_together(const Step *s, int thread) {
    const Model *m = s->model;
    const int D = m->width, F = m->feed_forward, rows = s->rows, threads = pool_threads(s->pool);
    const int from = share(rows, thread, threads), to = share(rows, thread + 1, threads);
#define MULTIPLY(matrix, y) multiply_together(s->pool, matrix, s->input, rows, from, to, s->prepared, y, thread)
    find_positions(s, from, to);
    for (int number = 0; number < m->num_layers; number++) {
        const Layer *layer = m->layers + number;
        for (int row = from; row < to; row++)
            normalise(s->hidden + (size_t)row * D, layer->attention_norm, D, m->epsilon, s->input + (size_t)row * D);
        MULTIPLY(&layer->query_key_value, s->joint);
        for (int row = from; row < to; row++) settle_row(s, number, row);
        pool_barrier(s->pool);
        attend_parts(s, number, thread);
        pool_barrier(s->pool);
        MULTIPLY(&layer->attention_out, s->output);
        for (int row = from; row < to; row++) {
            float *hidden = s->hidden + (size_t)row * D;
            add(hidden, s->output + (size_t)row * D, D);
            normalise(hidden, layer->feed_forward_norm, D, m->epsilon, s->input + (size_t)row * D);
        }
        MULTIPLY(&layer->gate_up, s->output);
        for (int row = from; row < to; row++) {
            const float *gate = s->output + (size_t)row * 2 * F;
            activate(gate, gate + F, F, s->input + (size_t)row * F);
        }
        MULTIPLY(&layer->down, s->output);
        for (int row = from; row < to; row++) add(s->hidden + (size_t)row * D, s->output + (size_t)row * D, D);
    }
    pool_barrier(s->pool);
#undef MULTIPLY
}

// Both ---------------------------------------------------------------------------------------------------

static void work(void *what, int thread) {
    const Step *s = what;
    const Model *m = s->model;
    const int D = m->width, number = s->num_scored, threads = pool_threads(s->pool);
    const int from = share(number, thread, threads), to = share(number, thread + 1, threads);
    if (s->num_chunks) work_in_chunks(s, thread);
    else work_together(s, thread);
    for (int i = from; i < to; i++)
        normalise(s->hidden + (size_t)s->scored[i] * D, m->final_norm, D, m->epsilon, s->last + (size_t)i * D);
    if (number) multiply_together(s->pool, m->vocabulary, s->last, number, from, to, s->prepared_last, s->scores, thread);
}

void run_step(Pool *pool, const Model *model, int rows, float *hidden, int num_spans, const Span *spans, const Cache *caches,
              int num_scored, const int *scored, float *scores, void *workspace) {
    Step s = {.pool = pool, .model = model, .spans = spans, .caches = caches, .scored = scored, .rows = rows,
              .num_spans = num_spans, .num_scored = num_scored, .hidden = hidden, .scores = scores};
    carve(&s, model, rows, num_scored, pool_threads(pool), workspace);
    for (int i = 0; i < num_spans; i++)
        s.parts_of_attention += (spans[i].rows + TOKENS_OF_PART - 1) / TOKENS_OF_PART * model->key_heads;
    for (int i = 0; i < model->num_layers; i++) atomic_init(&s.taken[i], 0);
    for (int i = 0; i < s.num_chunks; i++) atomic_init(&s.done[i], 0);
    pool_run(pool, work, &s);
}

typedef struct {
    Pool *pool;
    const Matrix *matrix;
    const float *x;
    int rows;
    char *prepared;
    float *y;
} Product;

static void work_on_product(void *what, int thread) {
    const Product *p = what;
    const int threads = pool_threads(p->pool);
    multiply_together(p->pool, p->matrix, p->x, p->rows, share(p->rows, thread, threads), share(p->rows, thread + 1, threads),
                      p->prepared, p->y, thread);
}

void run_product(Pool *pool, const Matrix *matrix, const float *x, int rows, float *y, void *prepared) {
    Product product = {pool, matrix, x, rows, prepared, y};
    pool_run(pool, work_on_product, &product);
}
