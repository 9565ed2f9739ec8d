// A piece of work is short (a step of a small model takes a millisecond) and the next comes at once: whoever waits looks
// again and again for a while, and only then sleeps. Between the phases of one piece nobody sleeps, but where there are
// fewer processors than threads the waiting ones give way.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { LOOKS = 4000, LOOKS_AT_BARRIER = 2000 };  // about 50 and 25 µs

struct Pool {
    int threads, started;
    pthread_t *handles;
    pthread_mutex_t one_caller, sleep;
    pthread_cond_t wake;
    atomic_int round, done, stopping;  // pieces of work begun; threads that are through with this one
    atomic_int arrived, phase;         // at a barrier
    Work work;
    void *what;
};

typedef struct { Pool *pool; int thread; } Start;

static inline void pause_a_moment(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void *serve(void *argument) {
    Start start = *(Start *)argument;
    free(argument);
    Pool *pool = start.pool;
    for (int seen = 0;; seen++) {
        for (int look = 0; look < LOOKS && atomic_load(&pool->round) == seen; look++) pause_a_moment();
        if (atomic_load(&pool->round) == seen) {
            pthread_mutex_lock(&pool->sleep);
            while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->sleep);
            pthread_mutex_unlock(&pool->sleep);
        }
        if (atomic_load(&pool->stopping)) return NULL;
        pool->work(pool->what, start.thread);
        atomic_fetch_add(&pool->done, 1);
    }
}

static void begin_round(Pool *pool) {
    atomic_store(&pool->done, 0);
    pthread_mutex_lock(&pool->sleep);
    atomic_fetch_add(&pool->round, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep);
}

Pool *pool_new(int threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = threads;
    pool->handles = calloc((size_t)threads, sizeof *pool->handles);
    pthread_mutex_init(&pool->one_caller, NULL);
    pthread_mutex_init(&pool->sleep, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int thread = 1; pool->handles && thread < threads; thread++) {
        Start *start = malloc(sizeof *start);
        if (start) *start = (Start){pool, thread};
        if (!start || pthread_create(&pool->handles[pool->started], NULL, serve, start)) {
            free(start);
            pool_free(pool);
            return NULL;
        }
        pool->started++;
    }
    return pool;
}

void pool_free(Pool *pool) {
    atomic_store(&pool->stopping, 1);
    begin_round(pool);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->handles[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->sleep);
    pthread_mutex_destroy(&pool->one_caller);
    free(pool->handles);
    free(pool);
}

int pool_threads(const Pool *pool) { return pool->threads; }

void pool_run(Pool *pool, Work work, void *what) {
    if (pool->threads == 1) {
        work(what, 0);
        return;
    }
    pthread_mutex_lock(&pool->one_caller);
    pool->work = work;
    pool->what = what;
    begin_round(pool);
    work(what, 0);
    for (int look = 0; atomic_load(&pool->done) < pool->started; look++)
        look < LOOKS_AT_BARRIER ? pause_a_moment() : (void)sched_yield();
    pthread_mutex_unlock(&pool->one_caller);
}

void pool_barrier(Pool *pool) {
    if (pool->threads == 1) return;
    int phase = atomic_load(&pool->phase);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 == pool->threads) {
        atomic_store(&pool->arrived, 0);
        atomic_fetch_add(&pool->phase, 1);
        return;
    }
    for (int look = 0; atomic_load(&pool->phase) == phase; look++)
        look < LOOKS_AT_BARRIER ? pause_a_moment() : (void)sched_yield();
}
