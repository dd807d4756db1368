/* fork for Node.js, as an addon. Declares the few functions of Node-API that it uses, so that it needs no headers. */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct napi_env__ *napi_env;
typedef struct napi_value__ *napi_value;
typedef struct napi_callback_info__ *napi_callback_info;
typedef napi_value (*napi_callback)(napi_env, napi_callback_info);
extern int napi_create_function(napi_env, const char *, size_t, napi_callback, void *, napi_value *);
extern int napi_create_int32(napi_env, int, napi_value *);
extern int napi_set_named_property(napi_env, napi_value, const char *, napi_value);

static napi_value number(napi_env env, int n) {
    napi_value value = NULL;
    napi_create_int32(env, n, &value);
    return value;
}

/* V8 marks its memory MADV_DONTFORK, so that a child would not have it. */
static napi_value prepare(napi_env env, napi_callback_info info) {
    static unsigned long ranges[16384][2];
    (void)info;
    signal(SIGCHLD, SIG_IGN); /* the kernel reaps children */
    FILE *maps = fopen("/proc/self/maps", "r");
    if (maps == NULL)
        return number(env, -1);
    char line[4096 + 128];
    int count = 0;
    while (count < 16384 && fgets(line, sizeof line, maps) != NULL)
        if (sscanf(line, "%lx-%lx", &ranges[count][0], &ranges[count][1]) == 2)
            count++;
    fclose(maps);
    for (int i = 0; i < count; i++) /* fails on the kernel's own mappings, which are inherited anyway */
        madvise((void *)ranges[i][0], ranges[i][1] - ranges[i][0], MADV_DOFORK);
    return number(env, count);
}

static pid_t last;

static napi_value do_fork(napi_env env, napi_callback_info info) {
    (void)info;
    return number(env, last = fork());
}

static napi_value do_getpid(napi_env env, napi_callback_info info) {
    (void)info;
    return number(env, getpid());
}

static napi_value do_wait(napi_env env, napi_callback_info info) {
    (void)info;
    return number(env, waitpid(last, NULL, 0));
}

static napi_value do_exit(napi_env env, napi_callback_info info) {
    (void)env;
    (void)info;
    _exit(0);
}

static void export(napi_env env, napi_value exports, const char *name, napi_callback callback) {
    napi_value function = NULL;
    napi_create_function(env, name, (size_t)-1, callback, NULL, &function);
    napi_set_named_property(env, exports, name, function);
}

napi_value napi_register_module_v1(napi_env env, napi_value exports) {
    export(env, exports, "prepare", prepare);
    export(env, exports, "fork", do_fork);
    export(env, exports, "getpid", do_getpid);
    export(env, exports, "wait", do_wait);
    export(env, exports, "exit", do_exit);
    return exports;
}
