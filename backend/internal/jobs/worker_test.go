// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

// workerLog is a logger with what it has written.
func workerLog() (hclog.Logger, *lines) {
	log := &lines{}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: log}), log
}

func TestWakesDuringARunBecomeOneMoreRun(t *testing.T) {
	t.Parallel()
	logger, _ := workerLog()
	begun, goOn := make(chan int), make(chan struct{})
	runs := 0
	w := StartWorker("test", logger, func(context.Context) error {
		runs++
		begun <- runs
		<-goOn
		return nil
	})
	w.Wake()
	<-begun
	for range 100 {
		w.Wake() // at once, though the task is running
	}
	goOn <- struct{}{}
	if n := <-begun; n != 2 {
		t.Errorf("run %d began, want the second", n)
	}
	goOn <- struct{}{}
	w.Stop(clock.System().After)
	if runs != 2 {
		t.Errorf("there were %d runs, want 2", runs)
	}
	w.Wake() // after the end: nothing
	w.Stop(clock.System().After)
}

func TestAnErrorPausesTheWorkerUntilTheNextWake(t *testing.T) {
	t.Parallel()
	logger, log := workerLog()
	runs := make(chan struct{})
	w := StartWorker("test", logger, func(context.Context) error {
		runs <- struct{}{}
		return errors.New("storage is gone")
	})
	for range 3 {
		w.Wake()
		<-runs
	}
	w.Stop(clock.System().After)
	if got := strings.Count(log.String(), "storage is gone"); got < 2 {
		t.Errorf("the log tells of %d errors: %s", got, log)
	}
}

func TestAPanicDoesNotEndTheWorker(t *testing.T) {
	t.Parallel()
	logger, log := workerLog()
	runs := make(chan struct{})
	w := StartWorker("test", logger, func(context.Context) error {
		runs <- struct{}{}
		panic("s3cr3tMARKER")
	})
	for range 3 {
		w.Wake()
		<-runs
	}
	w.Stop(clock.System().After)
	if text := log.String(); strings.Contains(text, "s3cr3tMARKER") || !strings.Contains(text, "worker_test.go") {
		t.Errorf("the log must tell the place of a panic, and not its value: %s", text)
	}
}

func TestStopEndsTheTasksContext(t *testing.T) {
	t.Parallel()
	logger, log := workerLog()
	begun := make(chan struct{})
	w := StartWorker("test", logger, func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	w.Wake()
	<-begun
	w.Stop(clock.NewManual(epoch).After) // which never delivers
	if log.String() != "" {
		t.Errorf("an orderly end is in the log: %s", log)
	}
}

func TestStopWaitsASecondForATaskThatHangs(t *testing.T) {
	t.Parallel()
	logger, log := workerLog()
	begun, release := make(chan struct{}), make(chan struct{})
	w := StartWorker("test", logger, func(context.Context) error {
		close(begun)
		<-release // as storage that ignores its context
		return nil
	})
	w.Wake()
	<-begun
	c := clock.NewManual(epoch)
	asked, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		w.Stop(func(d time.Duration) <-chan time.Time {
			if d != time.Second {
				t.Errorf("stop waits %s, want a second", d)
			}
			defer close(asked)
			return c.After(d)
		})
	}()
	<-asked
	select {
	case <-stopped:
		t.Error("stop did not wait")
	default:
	}
	c.Advance(time.Second)
	<-stopped
	if !strings.Contains(log.String(), "still under way") {
		t.Errorf("the log does not tell of it: %s", log)
	}
	close(release)
	<-w.done // the goroutine ends with the call that it waited for
}
