// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"fmt"
	"runtime"
	"strings"
)

// rescue tells whether a request ended in a panic, and logs where. What the
// panic says is logged only if it is the runtime's: anything else may hold a key.
func (g *Gateway) rescue(protocol string, panicked any) bool {
	if panicked == nil {
		return false
	}
	what := fmt.Sprintf("%T", panicked)
	if err, ok := panicked.(runtime.Error); ok {
		what = err.Error()
	}
	g.metrics.requests.WithLabelValues(protocol, "none", string(ReasonUnavailable)).Inc()
	g.log.Error("a request could not be judged: this is a fault of the gateway", "protocol", protocol, "panic", what, "stack", stack())
	return true
}

// stack is where the goroutine is, without the arguments of calls.
func stack() string {
	var callers [64]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(3, callers[:])])
	var b strings.Builder
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		_, _ = fmt.Fprintf(&b, "%s %s:%d\n", f.Function, f.File, f.Line) // never fails
	}
	return b.String()
}
