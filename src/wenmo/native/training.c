#include "training.h"

#include <math.h>
#include <stdlib.h>

#include "vector.h"

enum { ROWS_TOGETHER = 128 };  // whose share in a weight's gradient is summed before it is added to the rest

static inline size_t bytes_of(int is_bf16) { return is_bf16 ? sizeof(uint16_t) : sizeof(float); }
static inline int fewer(long a, long b) { return (int)(a < b ? a : b); }

// `count` numbers from place `at` on, as many as there are lanes unless fewer are left; zeros beside them.
// Callers pass `is_bf16` as a constant: so the compiler makes each loop twice, without a choice inside.
static inline Vector take(const void *from, size_t at, int count, int is_bf16) {
    if (is_bf16) return count >= LANES ? load_bf16((const uint16_t *)from + at)
                                       : load_first_bf16((const uint16_t *)from + at, count);
    return count >= LANES ? load((const float *)from + at) : load_first((const float *)from + at, count);
}

static inline void put(void *to, size_t at, Vector v, int count, int is_bf16) {
    if (is_bf16) store_first_bf16((uint16_t *)to + at, v, fewer(count, LANES));
    else store_first((float *)to + at, v, fewer(count, LANES));
}

static inline float take_one(const void *from, size_t at, int is_bf16) {
    return is_bf16 ? from_bf16(((const uint16_t *)from)[at]) : ((const float *)from)[at];
}

static inline Vector sigmoid_of(Vector x) { return 1.0f / (exp_of(-x) + 1.0f); }

// Work by all threads: `number` pieces in as many neighbouring parts as there are threads ------------------------------

typedef struct Pieces {
    void (*work)(const struct Pieces *pieces, long from, long to, int part);
    const void *what;
    long number;
    int parts, is_bf16;
} Pieces;

static void do_part(void *what, int part) {
    const Pieces *p = what;
    if (part >= p->parts) return;
    p->work(p, p->number * part / p->parts, p->number * (part + 1) / p->parts, part);
}

// Too little work for a second thread is done by the caller.
static void share_out(Pool *pool, void (*work)(const Pieces *, long, long, int), const void *what, long number, int parts,
                      double numbers, int is_bf16) {
    Pieces pieces = {work, what, number, parts, is_bf16};
    if (numbers >= 1 << 15 && pool_threads(pool) > 1) {
        pool_run(pool, do_part, &pieces);
        return;
    }
    for (int part = 0; part < parts; part++) do_part(&pieces, part);
}

// SwiGLU ------------------------------------------------------------------------------------------------------------

typedef struct { const void *gate, *up, *d_out; void *out, *d_gate, *d_up; long number; } Gate;
enum { PIECE = 1024 };  // numbers

static inline void gate_one(const Gate *g, size_t from, size_t to, const int is_bf16) {
    for (size_t i = from; i < to; i += LANES) {
        const int count = fewer((long)(to - i), LANES);
        Vector x = take(g->gate, i, count, is_bf16);
        put(g->out, i, x * sigmoid_of(x) * take(g->up, i, count, is_bf16), count, is_bf16);
    }
}

static inline void gate_back(const Gate *g, size_t from, size_t to, const int is_bf16) {
    for (size_t i = from; i < to; i += LANES) {
        const int count = fewer((long)(to - i), LANES);
        Vector x = take(g->gate, i, count, is_bf16), up = take(g->up, i, count, is_bf16);
        Vector d = take(g->d_out, i, count, is_bf16), share = sigmoid_of(x), silu = x * share;
        put(g->d_up, i, d * silu, count, is_bf16);
        put(g->d_gate, i, d * up * (share + silu * (1.0f - share)), count, is_bf16);
    }
}

static void gate_part(const Pieces *p, long from, long to, int part) {
    const Gate *g = p->what;
    const size_t first = (size_t)from * PIECE, last = (size_t)(to * PIECE < g->number ? to * PIECE : g->number);
    (void)part;
    if (g->d_out) { if (p->is_bf16) gate_back(g, first, last, 1); else gate_back(g, first, last, 0); }
    else { if (p->is_bf16) gate_one(g, first, last, 1); else gate_one(g, first, last, 0); }
}

void gate_forward(Pool *pool, const void *gate, const void *up, void *out, long number, int is_bf16) {
    Gate g = {.gate = gate, .up = up, .out = out, .number = number};
    share_out(pool, gate_part, &g, (number + PIECE - 1) / PIECE, pool_threads(pool), (double)number, is_bf16);
}

void gate_backward(Pool *pool, const void *gate, const void *up, const void *d_out, void *d_gate, void *d_up, long number,
                   int is_bf16) {
    Gate g = {gate, up, d_out, NULL, d_gate, d_up, number};
    share_out(pool, gate_part, &g, (number + PIECE - 1) / PIECE, pool_threads(pool), (double)number, is_bf16);
}

// RMSNorm -----------------------------------------------------------------------------------------------------------

typedef struct {
    const void *x, *d_out;
    const float *weight, *known;
    void *out;
    float *scales, *d_weights, epsilon;
    int width;
} Norm;

static inline void norm_rows(const Norm *n, long from, long to, const int is_bf16) {
    for (long row = from; row < to; row++) {
        const size_t at = (size_t)row * (size_t)n->width;
        Vector squares = {0};
        for (int i = 0; i < n->width; i += LANES) {
            Vector x = take(n->x, at + i, n->width - i, is_bf16);
            squares = fma_of(x, x, squares);
        }
        const float scale = 1.0f / sqrtf(sum_of(squares) / (float)n->width + n->epsilon);
        n->scales[row] = scale;
        for (int i = 0; i < n->width; i += LANES) {
            const int count = n->width - i;
            Vector x = take(n->x, at + i, count, is_bf16);
            put(n->out, at + i, x * scale * take(n->weight, i, count, 0), count, is_bf16);
        }
    }
}

// With x̂ = x · scale: d_x = (w · d − x̂ · mean(w · d · x̂)) · scale, d_w = Σ d · x̂.
static inline void norm_rows_back(const Norm *n, long from, long to, float *d_weight, float *some, const int is_bf16) {
    for (long first = from; first < to; first += ROWS_TOGETHER) {
        memset(some, 0, sizeof(float) * (size_t)n->width);
        for (long row = first; row < to && row < first + ROWS_TOGETHER; row++) {
            const size_t at = (size_t)row * (size_t)n->width;
            const float scale = n->known[row];
            Vector products = {0};
            for (int i = 0; i < n->width; i += LANES) {
                const int count = n->width - i;
                Vector product = take(n->d_out, at + i, count, is_bf16) * (take(n->x, at + i, count, is_bf16) * scale);
                products = fma_of(product, take(n->weight, i, count, 0), products);
                put(some, i, take(some, i, count, 0) + product, count, 0);
            }
            const float mean = sum_of(products) / (float)n->width;
            for (int i = 0; i < n->width; i += LANES) {
                const int count = n->width - i;
                Vector unit = take(n->x, at + i, count, is_bf16) * scale;
                Vector d = take(n->d_out, at + i, count, is_bf16) * take(n->weight, i, count, 0);
                put(n->out, at + i, (d - unit * mean) * scale, count, is_bf16);
            }
        }
        for (int i = 0; i < n->width; i++) d_weight[i] += some[i];
    }
}

static void norm_part(const Pieces *p, long from, long to, int part) {
    const Norm *n = p->what;
    (void)part;
    if (p->is_bf16) norm_rows(n, from, to, 1); else norm_rows(n, from, to, 0);
}

static void norm_part_back(const Pieces *p, long from, long to, int part) {
    const Norm *n = p->what;
    float *d_weight = n->d_weights + (size_t)part * 2 * (size_t)n->width, *some = d_weight + n->width;
    if (p->is_bf16) norm_rows_back(n, from, to, d_weight, some, 1); else norm_rows_back(n, from, to, d_weight, some, 0);
    memset(some, 0, sizeof(float) * (size_t)n->width);
}

void norm_forward(Pool *pool, const void *x, const float *weight, float epsilon, void *out, float *scales, long rows,
                  int width, int is_bf16) {
    Norm n = {.x = x, .weight = weight, .out = out, .scales = scales, .epsilon = epsilon, .width = width};
    share_out(pool, norm_part, &n, rows, pool_threads(pool), (double)rows * width, is_bf16);
}

void norm_backward(Pool *pool, const void *x, const float *weight, const float *scales, const void *d_out, void *d_x,
                   float *d_weights, int parts, long rows, int width, int is_bf16) {
    Norm n = {x, d_out, weight, scales, d_x, NULL, d_weights, 0, width};
    share_out(pool, norm_part_back, &n, rows, parts, (double)rows * width, is_bf16);
}

// Rotary positions --------------------------------------------------------------------------------------------------

typedef struct { const void *x, *cosines, *sines; void *out; int heads, width, backward; } Turn;

static inline void turn_rows(const Turn *t, long from, long to, const int is_bf16) {
    const int half = t->width / 2;
    const float sign = t->backward ? -1.0f : 1.0f;
    for (long row = from; row < to; row++)
        for (int head = 0; head < t->heads; head++) {
            const size_t at = ((size_t)row * (size_t)t->heads + (size_t)head) * (size_t)t->width;
            for (int i = 0; i < half; i += LANES) {
                const int count = half - i;
                const size_t angle = (size_t)row * (size_t)t->width + (size_t)(half + i);
                Vector cosine = take(t->cosines, angle, count, is_bf16), sine = take(t->sines, angle, count, is_bf16) * sign;
                Vector first = take(t->x, at + i, count, is_bf16), second = take(t->x, at + half + i, count, is_bf16);
                put(t->out, at + i, first * cosine - second * sine, count, is_bf16);
                put(t->out, at + half + i, second * cosine + first * sine, count, is_bf16);
            }
        }
}

static void turn_part(const Pieces *p, long from, long to, int part) {
    (void)part;
    if (p->is_bf16) turn_rows(p->what, from, to, 1); else turn_rows(p->what, from, to, 0);
}

void rotate_heads(Pool *pool, const void *x, const void *cosines, const void *sines, void *out, long rows, int heads,
                  int width, int backward, int is_bf16) {
    Turn t = {x, cosines, sines, out, heads, width, backward};
    share_out(pool, turn_part, &t, rows, pool_threads(pool), (double)rows * heads * width, is_bf16);
}

// Cross-entropy -----------------------------------------------------------------------------------------------------

typedef struct { void *logits; const int64_t *targets; float *losses, smoothing; int words; } Loss;

static inline void lose(const Loss *l, long row, float *shares, const int is_bf16) {
    const size_t at = (size_t)row * (size_t)l->words;
    const int64_t target = l->targets[row];
    if (target < 0) {
        memset((char *)l->logits + at * bytes_of(is_bf16), 0, (size_t)l->words * bytes_of(is_bf16));
        l->losses[row] = 0;
        return;
    }
    Vector most = all(-INFINITY), sum = {0}, sums = {0};
    int whole = l->words / LANES * LANES;
    float largest = -INFINITY, total = 0, rest = 0;
    for (int i = 0; i < whole; i += LANES) most = larger(most, take(l->logits, at + i, LANES, is_bf16));
    largest = largest_of(most);
    for (int i = whole; i < l->words; i++) {
        const float x = take_one(l->logits, at + i, is_bf16);
        largest = x > largest || x != x ? x : largest;
    }
    for (int i = 0; i < whole; i += LANES) {
        const Vector x = take(l->logits, at + i, LANES, is_bf16), e = exp_of(x - largest);
        store(shares + i, e);
        sum += e;
        if (l->smoothing > 0) sums += x;
    }
    total = sum_of(sum);
    rest = sum_of(sums);
    for (int i = whole; i < l->words; i++) {
        const float x = take_one(l->logits, at + i, is_bf16);
        shares[i] = exp_of(all(x - largest))[0];
        total += shares[i];
        rest += x;
    }
    const float norm = logf(total) + largest, logit = take_one(l->logits, at + (size_t)target, is_bf16);
    const float even = l->smoothing / (float)l->words, scale = 1.0f / total;
    l->losses[row] = norm - logit;
    if (l->smoothing > 0) l->losses[row] += l->smoothing * (logit - rest / (float)l->words);
    // The target's share is put right in fp32, before it is rounded.
    shares[target] -= (1.0f - l->smoothing) * total;
    for (int i = 0; i < l->words; i += LANES) {
        const int count = l->words - i;
        put(l->logits, at + i, take(shares, i, count, 0) * scale - even, count, is_bf16);
    }
}

static void lose_part(const Pieces *p, long from, long to, int part) {
    const Loss *l = p->what;
    (void)part;
    float *shares = malloc(sizeof(float) * (size_t)(l->words + LANES));
    if (!shares) abort();
    for (long row = from; row < to; row++)
        if (p->is_bf16) lose(l, row, shares, 1); else lose(l, row, shares, 0);
    free(shares);
}

void cross_entropy(Pool *pool, void *logits, const int64_t *targets, float *losses, long rows, int words, float smoothing,
                   int is_bf16) {
    Loss l = {logits, targets, losses, smoothing, words};
    share_out(pool, lose_part, &l, rows, pool_threads(pool), (double)rows * words, is_bf16);
}

// Attention ---------------------------------------------------------------------------------------------------------

typedef struct { void *scores; const void *weights; Sight sight; int groups; } Weigh;

static inline Integers in_sight(const Sight *s, int key, int query) {
    Integers last;
    for (int i = 0; i < LANES; i++) last[i] = query + i + s->ahead;
    Integers is = last >= key;
    return s->window ? is & (last < key + s->window) : is;
}

// A strip of at most as many queries as there are lanes: the keys that one of them sees, and between `all_from` and
// `all_to` those that all see.
typedef struct { int from, to, all_from, all_to; } Range;

static inline Range range_of(const Sight *s, int query, int count) {
    Range r = {0, fewer(s->keys, (long)query + count + s->ahead), 0, fewer(s->keys, (long)query + s->ahead + 1)};
    if (s->window) {
        r.from = query + s->ahead - s->window + 1;
        r.all_from = query + count - 1 + s->ahead - s->window + 1;
        if (r.from < 0) r.from = 0;
        if (r.all_from < 0) r.all_from = 0;
    }
    return r;
}

static inline Vector seen(Vector x, const Sight *s, const Range *r, int key, int query, float otherwise) {
    if (key >= r->all_from && key < r->all_to) return x;
    return chosen(in_sight(s, key, query), x, all(otherwise));
}

static inline void weigh(const Weigh *w, size_t at, int query, int count, float *strip, const int is_bf16) {
    const Sight *s = &w->sight;
    const size_t step = (size_t)s->queries * (size_t)w->groups;
    const Range r = range_of(s, query, count);
    Vector most = all(-INFINITY), sum = {0};
    for (int key = r.from; key < r.to; key++) {
        Vector x = seen(take(w->scores, at + (size_t)key * step, count, is_bf16), s, &r, key, query, -INFINITY);
        store(strip + (size_t)key * LANES, x);
        most = larger(most, x);
    }
    for (int key = r.from; key < r.to; key++) {
        Vector x = load(strip + (size_t)key * LANES), e = exp_of(x - most);
        e = chosen(x == all(-INFINITY), all(0.0f), e);
        store(strip + (size_t)key * LANES, e);
        sum += e;
    }
    const Vector scale = 1.0f / sum;
    for (int key = 0; key < r.from; key++) put(w->scores, at + (size_t)key * step, (Vector){0}, count, is_bf16);
    for (int key = r.from; key < r.to; key++)
        put(w->scores, at + (size_t)key * step, load(strip + (size_t)key * LANES) * scale, count, is_bf16);
    for (int key = r.to; key < s->keys; key++) put(w->scores, at + (size_t)key * step, (Vector){0}, count, is_bf16);
}

// d_score = weight · (d_weight − Σ weight · d_weight), a query at a time. A key out of sight has the weight 0.
static inline void weigh_back(const Weigh *w, size_t at, int query, int count, const int is_bf16) {
    const Sight *s = &w->sight;
    const size_t step = (size_t)s->queries * (size_t)w->groups;
    const Range r = range_of(s, query, count);
    Vector sum = {0};
    for (int key = r.from; key < r.to; key++) {
        const size_t place = at + (size_t)key * step;
        sum = fma_of(take(w->weights, place, count, is_bf16), take(w->scores, place, count, is_bf16), sum);
    }
    for (int key = 0; key < r.from; key++) put(w->scores, at + (size_t)key * step, (Vector){0}, count, is_bf16);
    for (int key = r.from; key < r.to; key++) {
        const size_t place = at + (size_t)key * step;
        const Vector weight = take(w->weights, place, count, is_bf16);
        put(w->scores, place, weight * (take(w->scores, place, count, is_bf16) - sum), count, is_bf16);
    }
    for (int key = r.to; key < s->keys; key++) put(w->scores, at + (size_t)key * step, (Vector){0}, count, is_bf16);
}

static void weigh_part(const Pieces *p, long from, long to, int part) {
    const Weigh *w = p->what;
    const Sight *s = &w->sight;
    (void)part;
    float *strip = malloc(sizeof(float) * LANES * (size_t)s->keys);
    if (!strip) abort();
    for (long place = from; place < to; place++) {  // of all blocks of scores, group after group
        const size_t block = (size_t)(place / w->groups), group = (size_t)(place % w->groups);
        for (int query = 0; query < s->queries; query += LANES) {
            const int count = fewer(LANES, s->queries - query);
            const size_t at = (block * (size_t)s->keys * (size_t)w->groups + group) * (size_t)s->queries + (size_t)query;
            if (w->weights && p->is_bf16) weigh_back(w, at, query, count, 1);
            else if (w->weights) weigh_back(w, at, query, count, 0);
            else if (p->is_bf16) weigh(w, at, query, count, strip, 1);
            else weigh(w, at, query, count, strip, 0);
        }
    }
    free(strip);
}

void weigh_keys(Pool *pool, void *scores, long count, int groups, const Sight *sight, int is_bf16) {
    Weigh w = {scores, NULL, *sight, groups};
    share_out(pool, weigh_part, &w, count * groups, pool_threads(pool),
              (double)count * groups * sight->keys * sight->queries, is_bf16);
}

void weigh_keys_backward(Pool *pool, void *gradients, const void *weights, long count, int groups, const Sight *sight,
                         int is_bf16) {
    Weigh w = {gradients, weights, *sight, groups};
    share_out(pool, weigh_part, &w, count * groups, pool_threads(pool),
              (double)count * groups * sight->keys * sight->queries, is_bf16);
}

typedef struct {
    const void *x;
    void *out;
    const long *x_strides, *out_strides;
    int tokens, heads, width;
    float factor;
} Move;

static void move_part(const Pieces *p, long from, long to, int part) {
    const Move *m = p->what;
    const size_t size = bytes_of(p->is_bf16);
    (void)part;
    for (long place = from; place < to; place++) {
        const long row = place / m->tokens, token = place % m->tokens;
        for (int head = 0; head < m->heads; head++) {
            const size_t x_at = (size_t)(row * m->x_strides[0] + token * m->x_strides[1] + head * m->x_strides[2]);
            const size_t at = (size_t)(row * m->out_strides[0] + token * m->out_strides[1] + head * m->out_strides[2]);
            if (m->factor == 1.0f) {
                memcpy((char *)m->out + at * size, (const char *)m->x + x_at * size, (size_t)m->width * size);
                continue;
            }
            for (int i = 0; i < m->width; i += LANES) {
                const int count = m->width - i;
                put(m->out, at + i, take(m->x, x_at + i, count, p->is_bf16) * m->factor, count, p->is_bf16);
            }
        }
    }
}

void move_heads(Pool *pool, const void *x, const long x_strides[3], void *out, const long out_strides[3], long rows,
                int tokens, int heads, int width, float factor, int is_bf16) {
    Move m = {x, out, x_strides, out_strides, tokens, heads, width, factor};
    share_out(pool, move_part, &m, rows * tokens, pool_threads(pool), (double)rows * tokens * heads * width, is_bf16);
}
