// softmax(Q K^T · scale) V, block by block of 64 keys with a running maximum (Milakov & Gimelshein 2018; Dao et al. 2022,
// §3.1). Blocks begin at multiples of 64 whatever the queries are, so that a query's sums are taken in one order.
//
// Both products are one: C += A B with A's words broadcast and B's words side by side. A word is an fp32 number, or where
// the processor multiplies those, a pair of bf16 numbers: neighbouring dimensions of queries and keys, neighbouring keys of
// weights and values.
#include "attention.h"
#include "vector.h"

#ifdef __AVX512BF16__
enum { PAIRS = 1 };
#else
enum { PAIRS = 0 };
#endif

enum { KEYS = 64, VECTORS = KEYS / LANES, ALIGNMENT = 64 };
enum { ROWS = 4, WIDE = LANES == 16 ? 4 : 2 };  // of a tile: vectors of 512 bits have twice as many registers
typedef uint32_t Word;
static const float LOWEST = -3e38f;  // of a query that has seen no key yet

static inline int up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// What stands in the scratch: queries, a block of keys and values as words, scores, weights as words, sums.
typedef struct {
    Word *query, *key, *value, *weight;
    float *score, *sum, *highest, *total;  // total: of the weights, lane by lane
    int padded;   // head_width, to whole vectors of words
    int depth;    // words of a query
    int queries;  // at most
} Scratch;

static size_t carve(Scratch *s, int head_width, int group, char *from) {
    s->padded = up(head_width, 2 * LANES);
    s->queries = group > MOST_QUERIES ? group : MOST_QUERIES;
    size_t at = 0, queries = (size_t)s->queries, padded = (size_t)s->padded;
#define TAKE(name, number) s->name = (void *)(from + at), at += ((number) * 4 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
    TAKE(query, queries * padded);
    TAKE(key, KEYS * padded);
    TAKE(value, KEYS * padded);
    TAKE(weight, queries * KEYS);
    TAKE(score, queries * KEYS);
    TAKE(sum, queries * padded);
    TAKE(highest, queries);
    TAKE(total, queries * LANES);
#undef TAKE
    return at;
}

size_t attention_bytes(int head_width, int group) {
    Scratch s;
    return carve(&s, head_width, group, NULL);
}

// Products -----------------------------------------------------------------------------------------------

static inline __attribute__((always_inline)) Vector add_product(Vector sum, Word a, const Word *b, const int pairs) {
#ifdef __AVX512BF16__
    if (pairs)
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
#endif
    (void)pairs;
    float x;
    memcpy(&x, &a, sizeof x);
    return fma_of(all(x), load((const float *)b), sum);
}

// C[rows, LANES · vectors] += A[rows, depth] B[depth, …]; each sum along the depth, in one register.
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, const int pairs, const Word *a,
                                                       int a_stride, const Word *b, int b_stride, float *c, int c_stride,
                                                       int depth) {
    Vector sum[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = load(c + r * c_stride + v * LANES);
    for (int d = 0; d < depth; d++)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] = add_product(sum[r][v], a[r * a_stride + d], b + d * b_stride + v * LANES, pairs);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(c + r * c_stride + v * LANES, sum[r][v]);
}

static inline __attribute__((always_inline)) void product(const int pairs, int rows, int columns, const Word *a,
                                                          int a_stride, const Word *b, int b_stride, float *c, int c_stride,
                                                          int depth) {
    for (int r = 0; r < rows; r += ROWS)
        for (int column = 0, wide; column < columns; column += wide ? WIDE * LANES : LANES) {
            wide = columns - column >= WIDE * LANES;
#define TILE(rows, vectors) \
    tile(rows, vectors, pairs, a + r * a_stride, a_stride, b + column, b_stride, c + r * c_stride + column, c_stride, depth)
            switch (rows - r) {
                case 1: if (wide) TILE(1, WIDE); else TILE(1, 1); break;
                case 2: if (wide) TILE(2, WIDE); else TILE(2, 1); break;
                case 3: if (wide) TILE(3, WIDE); else TILE(3, 1); break;
                default: if (wide) TILE(ROWS, WIDE); else TILE(ROWS, 1);
            }
#undef TILE
        }
}

// Blocks of keys and values ------------------------------------------------------------------------------

#ifdef __AVX512F__
// [rows, 16] words → [16, 16], their transpose, with zeros for the rows that are missing.
static inline void transpose(const Word *from, size_t stride, int rows, Word *to, int to_stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = i < rows ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // a[i + j]: column j of each 4 × 4 block
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_si512(to + (size_t)j * to_stride, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(to + (size_t)(4 + j) * to_stride, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(to + (size_t)(8 + j) * to_stride, _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(to + (size_t)(12 + j) * to_stride, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#endif

// keys: [number, head_width] → words [depth, KEYS], of which as many columns are of use as there are keys, in sixteens.
static void place_keys(const Heads *heads, const char *keys, int number, Scratch *s) {
    const int H = heads->head_width, pairs = PAIRS && heads->is_bf16, columns = up(number, LANES);
#ifdef __AVX512F__
    const int words = pairs ? H / 2 : H;
    if ((pairs || !heads->is_bf16) && H % (2 * LANES) == 0) {
        for (int k = 0; k < number; k += LANES)
            for (int w = 0; w < words; w += LANES)
                transpose((const Word *)keys + (size_t)k * words + w, (size_t)words, number - k, s->key + w * KEYS + k,
                          KEYS);
        return;
    }
#endif
    for (int d = 0; d < s->depth; d++)
        for (int k = 0; k < columns; k++) {
            Word word = 0;
            if (k < number && pairs) {
                const uint16_t *key = (const uint16_t *)keys + (size_t)k * H;
                if (2 * d < H) word = key[2 * d] | (2 * d + 1 < H ? (Word)key[2 * d + 1] << 16 : 0);
            } else if (k < number && d < H) {
                if (heads->is_bf16) word = (Word)((const uint16_t *)keys)[(size_t)k * H + d] << 16;
                else word = ((const Word *)keys)[(size_t)k * H + d];
            }
            s->key[d * KEYS + k] = word;
        }
}

// values: [number, head_width] → words [number, padded], or of pairs half as many rows.
static void place_values(const Heads *heads, const char *values, int number, Scratch *s) {
    const int H = heads->head_width, pairs = PAIRS && heads->is_bf16;
    Word *to = s->value;
    for (int row = 0; row < number; row += pairs ? 2 : 1, to += s->padded) {
        const uint16_t *first = (const uint16_t *)values + (size_t)row * H, *second = first + H;
        const int both = row + 1 < number;
        int h = 0;
        if (!heads->is_bf16) {
            memcpy(to, (const Word *)values + (size_t)row * H, sizeof(Word) * (size_t)H);
            h = H;
        }
#ifdef __AVX512BF16__
        for (; pairs && both && h + LANES <= H; h += LANES) {
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(first + h)));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(second + h)));
            _mm512_storeu_si512(to + h, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
#endif
        for (; h < H; h++) to[h] = pairs ? first[h] | (both ? (Word)second[h] << 16 : 0) : (Word)first[h] << 16;
        for (; h < s->padded; h++) to[h] = 0;
    }
}

// fp32 numbers as words; number: a multiple of 32.
static void as_words(const float *from, int number, Word *to, const int pairs) {
    if (!pairs) {
        memcpy(to, from, sizeof(Word) * (size_t)number);
        return;
    }
#ifdef __AVX512BF16__
    for (int i = 0; i < number; i += 2 * LANES)
        _mm512_storeu_si512(to + i / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + LANES),
                                                                     _mm512_loadu_ps(from + i)));
#endif
}

// Softmax ------------------------------------------------------------------------------------------------

// Scores of a block, of which a query sees those from `low` to before `high` → weights, and what they do to sums so far.
static void weigh(Scratch *s, int query, int low, int high, float scale, const int pairs) {
    float *score = s->score + (size_t)query * KEYS, *total = s->total + (size_t)query * LANES;
    Integers lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    Vector x[VECTORS];
    Integers seen[VECTORS];
    Vector highest_of_lane = all(s->highest[query]);
    for (int v = 0; v < VECTORS; v++) {
        Integers key = lane + v * LANES;
        seen[v] = (key >= low) & (key < high);
        x[v] = load(score + v * LANES) * scale;
        Vector shown = chosen(seen[v], x[v], all(LOWEST));
        highest_of_lane = larger(shown, highest_of_lane);
    }
    const float highest = largest_of(highest_of_lane);
    Vector sum = {0};
    for (int v = 0; v < VECTORS; v++) {
        x[v] = (Vector)((Integers)exp_of(x[v] - highest) & seen[v]);
        store(score + v * LANES, x[v]);
        sum += x[v];
    }
    if (highest != s->highest[query]) {
        const float shrink = exp_of(all(s->highest[query] - highest))[0];
        float *sums = s->sum + (size_t)query * s->padded;
        for (int h = 0; h < s->padded; h += LANES) store(sums + h, load(sums + h) * shrink);
        store(total, load(total) * shrink);
        s->highest[query] = highest;
    }
    store(total, load(total) + sum);
    as_words(score, KEYS, s->weight + (size_t)query * KEYS, pairs);
}

// Tokens at once -----------------------------------------------------------------------------------------

static inline __attribute__((always_inline)) void attend_tokens(const Heads *heads, const int pairs, int first, int tokens,
                                                                const float *queries, size_t query_stride, float *out,
                                                                size_t out_stride, Scratch *s) {
    const int H = heads->head_width, G = heads->group, number = tokens * G, padded = s->padded;
    const size_t element = heads->is_bf16 ? 2 : 4;
    for (int q = 0; q < number; q++) {
        float *line = s->sum + (size_t)q * padded;  // its place is free until the first weights
        memset(line, 0, sizeof(float) * (size_t)padded);
        memcpy(line, queries + (size_t)(q / G) * query_stride + (size_t)(q % G) * H, sizeof(float) * (size_t)H);
        as_words(line, padded, s->query + (size_t)q * padded, pairs);
        memset(line, 0, sizeof(float) * (size_t)padded);
        s->highest[q] = LOWEST;
        store(s->total + (size_t)q * LANES, (Vector){0});
    }
    const int position = heads->start + first, end = heads->all_keys ? heads->all_keys : position + tokens;
    int from = heads->window && position >= heads->window ? (position - heads->window + 1) / KEYS * KEYS : 0;
    for (; from < end; from += KEYS) {
        const int keys = end - from < KEYS ? end - from : KEYS;
        place_keys(heads, (const char *)heads->keys + element * (size_t)from * H, keys, s);
        memset(s->score, 0, sizeof(float) * (size_t)number * KEYS);
        product(pairs, number, up(keys, LANES), s->query, padded, s->key, KEYS, s->score, KEYS, s->depth);
        for (int q = 0; q < number; q++) {
            int own = (heads->all_keys ? end - 1 : position + q / G) - from;
            int low = heads->window ? own - heads->window + 1 : 0;
            if (own < 0 || low >= KEYS) memset(s->weight + (size_t)q * KEYS, 0, sizeof(Word) * KEYS);  // sees none of them
            else weigh(s, q, low, own + 1, heads->scale, pairs);
        }
        place_values(heads, (const char *)heads->values + element * (size_t)from * H, keys, s);
        product(pairs, number, padded, s->weight, KEYS, s->value, padded, s->sum, padded, pairs ? (keys + 1) / 2 : keys);
    }
    for (int q = 0; q < number; q++) {
        float *to = out + (size_t)(q / G) * out_stride + (size_t)(q % G) * H;
        const float total = sum_of(load(s->total + (size_t)q * LANES));
        for (int h = 0; h < H; h++) to[h] = s->sum[(size_t)q * padded + h] / total;
    }
}

void attend(const Heads *heads, const float *queries, size_t query_stride, float *out, size_t out_stride, void *scratch) {
    Scratch s;
    carve(&s, heads->head_width, heads->group, scratch);
    const int at_once = heads->group > MOST_QUERIES ? 1 : MOST_QUERIES / heads->group;
    const int pairs = PAIRS && heads->is_bf16;
    s.depth = pairs ? s.padded / 2 : s.padded;
    for (int first = 0; first < heads->tokens; first += at_once) {
        int tokens = heads->tokens - first < at_once ? heads->tokens - first : at_once;
        const float *from = queries + (size_t)first * query_stride;
        float *to = out + (size_t)first * out_stride;
        if (pairs) attend_tokens(heads, 1, first, tokens, from, query_stride, to, out_stride, &s);
        else attend_tokens(heads, 0, first, tokens, from, query_stride, to, out_stride, &s);
    }
}
