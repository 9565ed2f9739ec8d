// Attention of the queries that share a key head, over keys where they stand.
#ifndef WENMO_ATTENTION_H
#define WENMO_ATTENTION_H

#include <stddef.h>

typedef struct {
    const void *keys, *values;  // of this head: [positions, head_width]
    int is_bf16, head_width;
    int start, tokens;  // positions start … start + tokens − 1 have queries, `group` each
    int group;
    int window;  // a query sees so many keys, its own included; 0: all before it
    int all_keys;  // not 0: there are so many, and a query sees all of them, whatever its position
    float scale;
} Heads;

enum { MOST_QUERIES = 96 };  // tokens · group at a time, unless one token has more

size_t attention_bytes(int head_width, int group);  // of scratch

// queries, out: [tokens, stride], of which the first group · head_width are this head's.
void attend(const Heads *heads, const float *queries, size_t query_stride, float *out, size_t out_stride, void *scratch);

#endif
