// What a row goes through alone: norms, activations, rotary positions.
#include "rows.h"

#include <math.h>

#include "vector.h"

void normalise(const float *x, const float *weight, int width, float epsilon, float *y) {
    Vector squares = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) squares = fma_of(load(x + i), load(x + i), squares);
    float sum = sum_of(squares);
    for (; i < width; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)width + epsilon);
    for (i = 0; i + LANES <= width; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
    for (; i < width; i++) y[i] = x[i] * scale * weight[i];
}

void add(float *x, const float *y, int width) {
    for (int i = 0; i < width; i++) x[i] += y[i];
}

void activate(const float *gate, const float *up, int width, float *y) {
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

void find_positions(const Step *s, int from, int to) {
    const Model *m = s->model;
    const int half = m->head_width / 2;
    for (int number = 0; number < s->num_spans; number++) {
        const Span *span = s->spans + number;
        for (int row = from > span->first_row ? from : span->first_row; row < to && row < span->first_row + span->rows; row++) {
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

void settle_row(const Step *s, int number, int row) {
    const Model *m = s->model;
    const Layer *layer = m->layers + number;
    const Span *span = s->spans + s->span_of[row];
    const Cache *cache = s->caches + (size_t)span->cache * m->num_layers + number;
    const int H = m->head_width;
    const float *turns = s->turns + (size_t)row * H;
    float *query = s->joint + (size_t)row * joint_width(m), *key = query + m->heads * H, *value = key + m->key_heads * H;
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
