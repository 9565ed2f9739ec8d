// A piece of work is short (a step of a small model takes a millisecond) and the next comes at once: whoever waits looks
// again and again for a while, and only then sleeps. Nobody gives way without sleeping (sched_yield): that would give a
// whole slice of time, milliseconds, to any other program that is ready to run, and the others here wait for it.
#define _GNU_SOURCE  // for the processors that this program may use
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

enum { LOOKS = 8000 };  // about 100 µs

struct Pool {
    int threads, started;
    int looks;  // before who waits sleeps: none where others wait for the processor
    pthread_t *handles;
    pthread_mutex_t one_caller, sleep;
    pthread_cond_t wake;
    atomic_int sleepers;
    atomic_int round, done, stopping;  // pieces of work begun; threads that are through with this one
    atomic_int arrived, phase;         // at a barrier
    Work work;
    void *what;
    Parallel parallel;   // of threads that are not its own
    atomic_int next;     // of these the next to come
};

typedef struct { Pool *pool; int thread; } Start;

static inline void pause_a_moment(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Counters may go beyond the largest number and begin anew: what counts is how far they are apart.
static inline int is_below(atomic_int *counter, unsigned least) { return (int)((unsigned)atomic_load(counter) - least) < 0; }

void pool_await(Pool *pool, atomic_int *counter, unsigned least) {
    for (int look = 0; look < pool->looks; look++) {
        if (!is_below(counter, least)) return;
        pause_a_moment();
    }
    pthread_mutex_lock(&pool->sleep);
    atomic_fetch_add(&pool->sleepers, 1);  // before the last look: whoever advances the counter then sees a sleeper
    while (is_below(counter, least)) pthread_cond_wait(&pool->wake, &pool->sleep);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->sleep);
}

void pool_advance(Pool *pool, atomic_int *counter) {
    atomic_fetch_add(counter, 1);
    if (!atomic_load(&pool->sleepers)) return;
    pthread_mutex_lock(&pool->sleep);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep);
}

static void *serve(void *argument) {
    Start start = *(Start *)argument;
    free(argument);
    Pool *pool = start.pool;
    for (unsigned round = 1;; round++) {
        pool_await(pool, &pool->round, round);
        if (atomic_load(&pool->stopping)) return NULL;
        pool->work(pool->what, start.thread);
        pool_advance(pool, &pool->done);
    }
}

static int processors(void) {
#ifdef __linux__
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

Pool *pool_new(int threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->threads = threads;
    pool->looks = threads <= processors() ? LOOKS : 0;
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

Pool *pool_borrowed(int threads, Parallel parallel) {
    Pool *pool = pool_new(1);
    if (!pool) return NULL;
    pool->threads = threads;
    pool->parallel = parallel;
    return pool;
}

// Fewer threads may come than were asked for: whoever is through takes the next part.
static void take_parts(void *what) {
    Pool *pool = what;
    for (int part; (part = atomic_fetch_add(&pool->next, 1)) < pool->threads;) pool->work(pool->what, part);
}

void pool_free(Pool *pool) {
    atomic_store(&pool->stopping, 1);
    pool_advance(pool, &pool->round);
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
    if (pool->parallel) {
        atomic_store(&pool->next, 0);
        pool->parallel(take_parts, pool, (unsigned)pool->threads, 0);
        pthread_mutex_unlock(&pool->one_caller);
        return;
    }
    atomic_store(&pool->done, 0);
    pool_advance(pool, &pool->round);
    work(what, 0);
    pool_await(pool, &pool->done, (unsigned)pool->started);
    pthread_mutex_unlock(&pool->one_caller);
}

void pool_barrier(Pool *pool) {
    if (pool->threads == 1) return;
    const unsigned phase = (unsigned)atomic_load(&pool->phase);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 < pool->threads) {
        pool_await(pool, &pool->phase, phase + 1);
        return;
    }
    atomic_store(&pool->arrived, 0);
    pool_advance(pool, &pool->phase);
}
