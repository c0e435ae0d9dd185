// Stands in for libcuda in tests: memory is the process's own. Launches are printed instead of run, unless the test gives a
// function that runs them: then nothing queued is done before somebody waits for it, and not more than he waits for, on each
// stream by itself. With FAKE_CUDA_COPIES=early what is queued on any stream but the first is done as soon as it may be.
// FAKE_CUDA picks what goes wrong: no_device, zero, old, bad_launch, bad_kernel, bad_image. FAKE_CUDA_CAPABILITY,
// FAKE_CUDA_SMS and FAKE_CUDA_SMEM say which GPU it is.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Address;

static int mode(const char *name) {
    const char *now = getenv("FAKE_CUDA");
    return now && !strcmp(now, name);
}

static int launches;
static void *current;

// ---- what is queued, by stream

typedef struct Stream Stream;

// A record is done when those before it on its stream are. An event that is destroyed lives on while something queued names it.
typedef struct {
    int recorded, done, names, destroyed;
    Stream *stream;
} Event;

typedef struct Work {
    enum { kCopy, kMove, kFill, kRelease, kRecord, kWait, kLaunch } kind;
    void *to;
    const void *from;
    size_t bytes;
    int value;
    // Which of the event's records is made or waited for.
    int record;
    Event *event;
    void *launch;
    const char *function;
    unsigned block[3], smem_bytes;
    struct Work *next;
} Work;

typedef struct {
    Work *first, **end;
    int count, invalid;
} Graph;

// Streams are kept when they are destroyed: events remember theirs.
struct Stream {
    Work *first, **end;
    Stream *older;
};
static Stream *newest;
// What is captured, if anything is: what comes from or goes to the host, and memory, has no place in it.
static Graph *capturing;
static int graph_launches, graphs_made;
// Launches that an update put in the place of others, and kernels whose code was first loaded within a capture.
static int launches_changed, loaded_late;
static void *(*capture)(const char *kernel, const unsigned *config, void **params);
static void (*run)(void *launch);
// Most work that was queued behind what somebody waited for.
static int most_behind;
// Times that work on a stream waited for another stream's.
static int waits_across;

// Takes a launch's arguments, and runs it later.
void fake_cuda_runner(void *(*take)(const char *, const unsigned *, void **), void (*go)(void *)) {
    capture = take;
    run = go;
}
int fake_cuda_most_behind(void) { return most_behind; }
int fake_cuda_waits_across(void) { return waits_across; }
int fake_cuda_graph_launches(void) { return graph_launches; }
int fake_cuda_graphs_made(void) { return graphs_made; }
int fake_cuda_launches_changed(void) { return launches_changed; }
int fake_cuda_loaded_late(void) { return loaded_late; }

static void do_work(const Work *work) {
    switch (work->kind) {
        case kMove:
        case kCopy: memcpy(work->to, work->from, work->bytes); break;
        case kFill: memset(work->to, work->value, work->bytes); break;
        case kRelease: memset(work->to, 0xff, work->bytes); free((char *)work->to - 256); break;
        case kRecord: work->event->done = work->record; break;
        case kWait: break;
        case kLaunch: if (run) run(work->launch); break;
    }
}

static void go_ahead(void);

static void let_go(Event *event) {
    if (event->destroyed && !event->names) free(event);
}

static int queue(Stream *stream, Work work) {
    if (capturing) {
        if (work.kind != kLaunch && work.kind != kFill && work.kind != kMove) capturing->invalid = 1;
        *capturing->end = malloc(sizeof work);
        **capturing->end = work;
        capturing->end = &(*capturing->end)->next;
        *capturing->end = NULL;
        ++capturing->count;
        return 0;
    }
    if (work.event) ++work.event->names;
    if (!run) {
        do_work(&work);
        if (work.event) --work.event->names;
        return 0;
    }
    *stream->end = malloc(sizeof work);
    **stream->end = work;
    stream->end = &(*stream->end)->next;
    *stream->end = NULL;
    go_ahead();
    return 0;
}

static void do_first(Stream *stream) {
    Work *work = stream->first;
    stream->first = work->next;
    if (!stream->first) stream->end = &stream->first;
    do_work(work);
    if (work->event) --work->event->names, let_go(work->event);
    free(work);
}

static int is_blocked(const Work *work) { return work->kind == kWait && work->event->done < work->record; }

// Does what may be done early.
static void go_ahead(void) {
    const char *copies = getenv("FAKE_CUDA_COPIES");
    if (!copies || strcmp(copies, "early")) return;
    for (int moved = 1; moved;) {
        moved = 0;
        for (Stream *stream = newest; stream && stream->older; stream = stream->older)
            for (; stream->first && !is_blocked(stream->first); moved = 1) do_first(stream);
    }
}

// Does what is queued on a stream, to the record of an event that is wanted or to the end; and of other streams what it waits for.
static void work_off(Stream *stream, const Event *event, int record) {
    while (stream->first && (!event || event->done < record)) {
        if (is_blocked(stream->first)) {
            ++waits_across;
            work_off(stream->first->event->stream, stream->first->event, stream->first->record);
        }
        do_first(stream);
        go_ahead();
    }
}

static void wait_for(Stream *stream, const Event *event) {
    if (capturing) capturing->invalid = 1;
    if (!stream) return;
    work_off(stream, event, event ? event->recorded : 0);
    int behind = 0;
    for (Work *work = stream->first; work; work = work->next) behind += work->kind == kLaunch;
    if (behind > most_behind) most_behind = behind;
}

static void forget(Graph *graph) {
    while (graph->first) {
        Work *work = graph->first;
        graph->first = work->next;
        free(work);
    }
    free(graph);
}

static void replace(Graph *into, const Graph *from) {
    into->first = NULL, into->end = &into->first, into->count = from->count;
    for (const Work *work = from->first; work; work = work->next) {
        *into->end = malloc(sizeof *work);
        **into->end = *work;
        into->end = &(*into->end)->next;
        *into->end = NULL;
    }
}

// ---- the driver

int cuInit(unsigned flags) {
    setvbuf(stdout, NULL, _IONBF, 0);
    return mode("no_device") ? 100 : 0;
}
int cuDriverGetVersion(int *version) { *version = mode("old") ? 12040 : 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = !mode("zero"); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int len, int device) { snprintf(name, len, "Fake GPU"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 8ull << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    const char *capability = getenv("FAKE_CUDA_CAPABILITY");
    if (!capability) capability = "9.0";
    switch (which) {
        case 13: *value = 1000000; break;                // clock rate in kHz
        case 16: *value = getenv("FAKE_CUDA_SMS") ? atoi(getenv("FAKE_CUDA_SMS")) : 132; break;
        case 75: *value = atoi(capability); break;       // major
        case 76: *value = atoi(strchr(capability, '.') + 1); break;
        case 97:                                         // shared memory a CTA may opt in to
            *value = getenv("FAKE_CUDA_SMEM") ? atoi(getenv("FAKE_CUDA_SMEM")) : 232448;
            break;
        case 115: *value = 1; break;                     // memory pools
        default: *value = 0;
    }
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &launches; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxGetCurrent(void **context) { *context = current; return 0; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuGetErrorName(int error, const char **text) { *text = "NAME"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "the driver's words"; return 0; }

int cuStreamCreate(void **stream, unsigned flags) {
    Stream *made = calloc(1, sizeof *made);
    made->end = &made->first;
    made->older = newest;
    newest = *stream = made;
    return 0;
}
// What is queued is still done.
int cuStreamDestroy_v2(void *stream) {
    wait_for(stream, NULL);
    return 0;
}
int cuStreamSynchronize(void *stream) {
    wait_for(stream, NULL);
    return mode("bad_kernel") && launches ? 700 : 0;
}
int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(Event)); return 0; }
int cuEventDestroy_v2(void *event) {
    ((Event *)event)->destroyed = 1;
    let_go(event);
    return 0;
}
int cuEventRecord(void *event, void *stream) {
    Event *own = event;
    own->stream = stream;
    return queue(stream, (Work){.kind = kRecord, .event = own, .record = ++own->recorded});
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    Event *other = event;
    return queue(stream, (Work){.kind = kWait, .event = other, .record = other->recorded});
}
int cuEventSynchronize(void *event) {
    wait_for(((Event *)event)->stream, event);
    return mode("bad_kernel") && launches ? 700 : 0;
}
int cuEventQuery(void *event) { return ((Event *)event)->done < ((Event *)event)->recorded ? 600 : 0; }
int cuEventElapsedTime_v2(float *ms, void *start, void *end) { *ms = 1.5f; return 0; }

// The size stands before what is handed out. New memory, like released memory, is full of NaN.
static int allocate(Address *address, size_t bytes) {
    if (capturing) capturing->invalid = 1;
    if (bytes > 1u << 30) return 2;
    char *memory = aligned_alloc(256, 256 + (bytes + 255) / 256 * 256);
    *(size_t *)memory = bytes;
    memset(memory + 256, 0xff, bytes);
    *address = (Address)(memory + 256);
    return 0;
}
static int release(Stream *stream, Address address) {
    if (!run) printf("free\n");
    char *memory = (char *)address;
    return queue(stream, (Work){.kind = kRelease, .to = memory, .bytes = *(size_t *)(memory - 256)});
}
int cuMemAlloc_v2(Address *address, size_t bytes) { return allocate(address, bytes); }
// For devices without memory pools, which this one is not.
int cuMemFree_v2(Address address) { return 801; }
int cuMemAllocAsync(Address *address, size_t bytes, void *stream) { return allocate(address, bytes); }
int cuMemFreeAsync(Address address, void *stream) { return release(stream, address); }
int cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = &launches; return 0; }
int cuMemPoolSetAttribute(void *pool, int which, void *value) {
    printf("pool attribute %d = %llx\n", which, *(unsigned long long *)value);
    return 0;
}
// Reserved, then used.
int cuMemPoolGetAttribute(void *pool, int which, void *value) {
    *(unsigned long long *)value = which == 5 ? 3ull << 20 : 1ull << 20;
    return 0;
}
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    printf("page-locked %zu\n", bytes);
    *address = malloc(bytes);
    return 0;
}
int cuMemFreeHost(void *address) { free(address); return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = 5ull << 30; *total = 8ull << 30; return 0; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    return queue(stream, (Work){.kind = kCopy, .to = (void *)to, .from = from, .bytes = bytes});
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    return queue(stream, (Work){.kind = kCopy, .to = to, .from = (void *)from, .bytes = bytes});
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    return queue(stream, (Work){.kind = kMove, .to = (void *)to, .from = (void *)from, .bytes = bytes});
}
int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    return queue(stream, (Work){.kind = kFill, .to = (void *)to, .bytes = bytes, .value = value});
}

// Machine code begins like any ELF file, PTX with a comment; both must be where the program says.
int cuModuleLoadData(void **module, const char *image) {
    if (mode("bad_image")) return 200;
    if (memcmp(image, "\177ELF", 4) && !strstr(image, ".version")) return 200;
    *module = malloc(1);
    return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = strdup(name); return 0; }
int cuFuncLoad(void *function) {
    loaded_late += capturing != NULL;
    return 0;
}
int cuFuncSetAttribute(void *function, int which, int value) {
    if (!run) printf("attribute %d of %s = %d\n", which, (char *)function, value);
    return 0;
}

typedef struct {
    unsigned grid[3], block[3], smem_bytes;
    void *stream, *attributes;
    unsigned attribute_count;
} Config;

int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const unsigned long long *dims,
                           const unsigned long long *pitches, const unsigned *tile, const unsigned *steps,
                           int interleave, int swizzle, int promotion, int fill) {
    if (run) {
        // As the host device keeps a map: see src/device/tensor_map.rs.
        unsigned long long *words = map, element = type == 9 ? 2 : 4;
        memset(words, 0, 128);
        words[0] = 0x74656e736f726d61;
        words[1] = (Address)address;
        words[2] = element | rank << 8 | (unsigned)(swizzle == 3) << 16;
        for (unsigned i = 0; i < rank; ++i) {
            words[3 + i] = dims[i];
            words[7 + i] = tile[i];
            words[11 + i] = i == 0 ? element : pitches[i - 1];
        }
        return 0;
    }
    printf("map type %d dims %llu,%llu pitch %llu tile %u,%u steps %u,%u interleave %d swizzle %d promotion %d fill %d\n",
           type, dims[0], dims[1], pitches[0], tile[0], tile[1], steps[0], steps[1], interleave, swizzle, promotion, fill);
    memset(map, 7, 128);
    return rank == 2 && address ? 0 : 1;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
    capturing = calloc(1, sizeof *capturing);
    capturing->end = &capturing->first;
    return 0;
}
int cuStreamEndCapture(void *stream, void **graph) {
    Graph *captured = capturing;
    capturing = NULL;
    *graph = captured;
    return captured->invalid ? 901 : 0;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    ++graphs_made;
    *executable = calloc(1, sizeof(Graph));
    replace(*executable, graph);
    return 0;
}
// The same kinds of work in the same order, or nothing. The real one takes another kernel too, and may leave it the old one's
// cluster: that counts.
int cuGraphExecUpdate_v2(void *executable, void *graph, void *info) {
    Graph *old = executable, *new = graph;
    if (old->count != new->count) return 910;
    for (Work *a = old->first, *b = new->first; a; a = a->next, b = b->next)
        if (a->kind != b->kind) return 910;
    for (Work *a = old->first, *b = new->first; a; a = a->next, b = b->next)
        if (a->kind == kLaunch)
            launches_changed += strcmp(a->function, b->function) || memcmp(a->block, b->block, sizeof a->block) ||
                                a->smem_bytes != b->smem_bytes;
    while (old->first) {
        Work *work = old->first;
        old->first = work->next;
        free(work);
    }
    replace(old, new);
    return 0;
}
// A launch's arguments belong to the stream's work: a graph that ran is updated before it runs again.
int cuGraphLaunch(void *executable, void *stream) {
    ++graph_launches;
    for (Work *work = ((Graph *)executable)->first; work; work = work->next) queue(stream, *work);
    return 0;
}
int cuGraphDestroy(void *graph) { forget(graph); return 0; }
int cuGraphExecDestroy(void *executable) { forget(executable); return 0; }

#ifndef WITHOUT_LAUNCH
int cuLaunchKernelEx(const Config *config, void *function, void **params, void **extra) {
    if (mode("bad_launch")) return 1;
    ++launches;
    if (run || capturing)
        return queue(config->stream, (Work){.kind = kLaunch,
                                            .launch = run ? capture(function, config->grid, params) : NULL,
                                            .function = function,
                                            .block = {config->block[0], config->block[1], config->block[2]},
                                            .smem_bytes = config->smem_bytes});
    printf("launch %s grid %u,%u,%u block %u,%u,%u smem %u attributes %u\n", (char *)function, config->grid[0],
           config->grid[1], config->grid[2], config->block[0], config->block[1], config->block[2], config->smem_bytes,
           config->attribute_count);
    if (!strcmp(function, "grad_norm_finish"))
        printf("stats[0] %g partials[1] %g max_norm %g slices %d\n", (*(float **)params[0])[0],
               (*(double **)params[1])[1], *(float *)params[2], *(int *)params[3]);
    return 0;
}
#endif
