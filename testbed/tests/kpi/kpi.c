/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A module that uses the KPI of locks, time, tasks and memory through the
 * kernel's own macros, once as it should and once as BROKEN_RULE says.
 */
#include "wrapper.h"
#include <sys/callout.h>
#include <sys/taskqueue.h>

#ifndef BROKEN_RULE
#define	BROKEN_RULE	0
#endif

enum {
	ORDER = 1, SLEEP, TIMER, QUEUE, LEAK, MUTEX, RECURSE, NAP, TASK, TWICE,
	CRITICAL, BIND, BOUND
};

MALLOC_DEFINE(M_KPI, "kpi", "a test");
static struct mtx one, two;
static struct callout timer;
static struct taskqueue *queue;
static struct task task;
static volatile int ticked, worked;

static void
expire(void *arg)
{
	mtx_assert(&one, MA_OWNED);
	if (arg != &ticked || !mtx_owned(&one))
		panic("%s", "expire");
	if (BROKEN_RULE == NAP)
		free(malloc(8, M_KPI, M_WAITOK), M_KPI);
	ticked++;
}

static void
work(void *context, int pending)
{
	if (context != &worked)
		panic("%s", "work");
	if (BROKEN_RULE == TASK)
		taskqueue_drain(queue, &task);
	/* A taskqueue's thread may sleep. */
	pause_sbt("kpi", SBT_1US, 0, 0);
	worked += pending;
}

static int
load(void)
{
	sbintime_t begin = sbinuptime();
	char *memory;
	int i;

	mtx_init(&one, "kpi one", NULL, MTX_DEF);
	mtx_init(&two, "kpi two", NULL, MTX_DEF);
	mtx_lock(&one);
	mtx_lock(&two);
	mtx_unlock(&two);
	mtx_unlock(&one);

	memory = malloc(100, M_KPI, M_WAITOK | M_ZERO);
	for (i = 0; i < 100; i++)
		if (memory[i] != 0)
			return (EDOOFUS);
	free(memory, M_KPI);

	queue = taskqueue_create("kpi", M_WAITOK, taskqueue_thread_enqueue,
	    &queue);
	taskqueue_start_threads(&queue, 1, PWAIT, "kpi %d", 1);
	TASK_INIT(&task, 0, work, __DEVOLATILE(int *, &worked));
	taskqueue_enqueue(queue, &task);
	taskqueue_drain(queue, &task);
	if (worked != 1)
		return (EDOOFUS);

	callout_init_mtx(&timer, &one, 0);
	mtx_lock(&one);
	callout_reset_sbt(&timer, SBT_1MS, 0, expire,
	    __DEVOLATILE(int *, &ticked), 0);
	if (!callout_pending(&timer) || !callout_active(&timer))
		return (EDOOFUS);
	mtx_unlock(&one);
	while (ticked == 0)
		pause_sbt("kpi", SBT_1MS, 0, 0);
	if (callout_pending(&timer) || sbinuptime() - begin < SBT_1MS ||
	    getsbinuptime() > sbinuptime())
		return (EDOOFUS);

	switch (BROKEN_RULE) {
	case ORDER:
		mtx_lock(&two);
		mtx_lock(&one);
		break;
	case SLEEP:
		mtx_lock(&one);
		free(malloc(8, M_KPI, M_WAITOK), M_KPI);
		break;
	case TIMER:
		mtx_lock(&one);
		callout_reset_sbt(&timer, SBT_1S, 0, expire, NULL, 0);
		mtx_unlock(&one);
		break;
	case LEAK:
		memory = malloc(8, M_KPI, M_WAITOK);
		memory[0] = 1;
		break;
	case RECURSE:
		mtx_lock(&one);
		mtx_lock(&one);
		break;
	case TWICE:
		memory = malloc(8, M_KPI, M_NOWAIT);
		free(memory, M_KPI);
		free(memory, M_KPI);
		break;
	case CRITICAL:
		critical_enter();
		pause_sbt("kpi", SBT_1US, 0, 0);
		break;
	case BIND:
		sched_bind(curthread, 0);
		break;
	case BOUND:
		thread_lock(curthread);
		sched_bind(curthread, 0);
		thread_unlock(curthread);
		break;
	default:
		break;
	}
	critical_enter();
	critical_exit();
	return (0);
}

static int
unload(void)
{
	if (BROKEN_RULE != TIMER)
		callout_drain(&timer);
	if (BROKEN_RULE != QUEUE)
		taskqueue_free(queue);
	if (BROKEN_RULE != MUTEX)
		mtx_destroy(&one);
	mtx_destroy(&two);
	return (0);
}

static int
event(module_t mod, int what, void *arg)
{
	switch (what) {
	case MOD_LOAD:
		return (load());
	case MOD_QUIESCE:
		return (0);
	case MOD_UNLOAD:
		return (unload());
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t kpi_mod = { "kpi", event, NULL };
DECLARE_MODULE(kpi, kpi_mod, SI_SUB_DRIVERS, SI_ORDER_ANY);
