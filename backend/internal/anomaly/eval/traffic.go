// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/anomaly"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

const (
	weeks      = 6
	warmUp     = 3 // no incident begins before
	hours      = weeks * 7 * 24
	leastUses  = 2    // per hour on average, of the smallest keys
	mostUses   = 5000 // and of the largest
	rotateDays = 16
	usesNoted  = 3 // of one source and hour; more cannot change a verdict
)

// monday is when all traffic begins.
var monday = time.Date(2026, time.January, 5, 0, 0, 0, 0, time.UTC)

// class is a story that happens to a key. Without kinds it is one in which
// nobody wants an alarm.
type class struct {
	name string
	what string
	// kinds are the findings that tell of it, the first one above all.
	kinds []anomaly.Kind
	tell  func(*key)
}

var classes = []class{
	{"normal", "nothing happens", nil, func(*key) {}},
	{"launch", "grows 3 to 20 times within 6 hours to 7 days, and stays", nil, (*key).launch},
	{"drift", "grows or shrinks 4 times over 3 weeks", nil, (*key).drift},
	{"holiday", "1 to 3 days at a fifth of the usual", nil, (*key).holiday},
	{"outage", "1 to 8 hours of silence, then an hour of retries", nil, (*key).outage},
	{"move", "all clients move to new sources at once", nil, (*key).move},
	{"failed rollover", "1 to 3 sources go on with a retired version", []anomaly.Kind{anomaly.EndedVersionUse}, (*key).failedRollover},
	{"leak known", "a compromised version is tried every 10 hours", []anomaly.Kind{anomaly.EndedVersionUse}, (*key).leakKnown},
	{"leak, quiet", "2 uses an hour from elsewhere for 1 to 3 days", []anomaly.Kind{anomaly.UnseenSource}, (*key).leakQuiet},
	{"leak, loud", "5 to 20 times the usual uses, from elsewhere, for 1 to 3 days", []anomaly.Kind{anomaly.UnseenSource, anomaly.UnusualRate}, (*key).leakLoud},
	{"brute force", "50 to 1000 wrong secrets an hour for 1 to 12 hours", []anomaly.Kind{anomaly.WrongSecretBurst}, (*key).bruteForce},
	{"brute force, slow", "2 to 6 wrong secrets an hour for 3 days", []anomaly.Kind{anomaly.WrongSecretBurst}, (*key).bruteForceSlow},
	{"runaway", "5 to 20 times the usual uses, from its own sources, for 3 to 24 hours", []anomaly.Kind{anomaly.UnusualRate}, (*key).runaway},
	{"stop", "silent for a week", []anomaly.Kind{anomaly.UnusualRate}, (*key).stop},
	{"Vault down", "Vault is down for 1 to 8 hours, then an hour of retries", nil, (*key).vaultDown},
}

// shapes are how a key is used over a week.
var shapes = []string{"office", "consumer", "round the clock", "nightly batch", "weekly batch", "sporadic"}

// habits are how a key's sources change.
var habits = []string{"fixed", "deployments", "ever new"}

// event is a use, or an attempt at one.
type event struct {
	at      time.Duration
	version int
	source  string
	// state is that of the version where it has ended, and ended since when.
	state string
	ended time.Duration
	wrong bool
}

// key is the traffic of one key.
type key struct {
	rng          *rand.Rand
	id           string
	shape, habit string
	size         float64
	mean         [hours]float64 // expected uses of its own clients
	extra        [hours]float64 // and of a thief
	events       []event
	counts       []uint64
	sources      []string
	named        int
	// moved is the hour from which all sources are new.
	moved int
	// Nobody counts from hour down until up.
	down, up int
	// An incident lasts from begin to end.
	begin, end time.Duration
	at         int // the hour of begin
}

// newKey draws a key and the story of a class.
func newKey(seed uint64, number int, c class) *key {
	k := &key{
		rng: rand.New(rand.NewPCG(seed, uint64(number))), //nolint:gosec // it must be repeatable
		id:  fmt.Sprintf("k%05d%06d", seed, number), moved: -1,
	}
	k.shape = shapes[k.rng.IntN(len(shapes))]
	k.habit = habits[k.rng.IntN(len(habits))]
	k.size = math.Exp(k.between(math.Log(leastUses), math.Log(mostUses)))
	k.at = warmUp*7*24 + k.rng.IntN(2*7*24)
	k.begin = time.Duration(k.at) * time.Hour
	k.season()
	c.tell(k)
	k.draw()
	k.background()
	slices.SortStableFunc(k.events, func(a, b event) int { return int(a.at - b.at) })
	return k
}

func (k *key) between(low, high float64) float64 { return low + k.rng.Float64()*(high-low) }

func (k *key) poisson(mean float64) int {
	if mean <= 0 {
		return 0
	}
	return int(distuv.Poisson{Lambda: mean, Src: k.rng}.Rand())
}

// season is what is expected of each hour, with noise that lasts for hours and
// good and bad days.
func (k *key) season() {
	sd := k.between(0.05, 0.3)
	hour := k.rng.IntN(24)
	noise, session := 0.0, 0
	today := 0.0
	for h := range hours {
		if h%24 == 0 {
			today = 0.1 * k.rng.NormFloat64()
		}
		noise = 0.6*noise + 0.8*sd*k.rng.NormFloat64()
		weekend := h/24%7 >= 5
		local := float64((h + hour) % 24)
		var m float64
		switch k.shape {
		case "office":
			m = 0.03 + 2.5*math.Exp(-sq(local-13)/18)
			if weekend {
				m *= 0.1
			}
		case "consumer":
			m = 1 + 0.7*math.Sin(local/24*2*math.Pi)
			if weekend {
				m *= 1.3
			}
		case "round the clock":
			m = 1
		case "nightly batch":
			if local == 2 {
				m = 24
			}
		case "weekly batch":
			if local == 2 && h/24%7 == 6 {
				m = 7 * 24
			}
		case "sporadic":
			// People at work on something, now and then.
			if session == 0 && k.rng.Float64() < 0.02 {
				session = 1 + k.rng.IntN(5)
			}
			if session > 0 {
				session--
				m = 15 * math.Exp(0.7*k.rng.NormFloat64())
			}
		}
		k.mean[h] = k.size * m * math.Exp(noise+today)
	}
}

func sq(x float64) float64 { return x * x }

// scale changes what is expected of some hours.
func (k *key) scale(from, to int, by func(h int) float64) {
	for h := max(0, from); h < min(to, hours); h++ {
		k.mean[h] *= by(h)
	}
}

// label says how long an incident is told of.
func (k *key) label(lasts int) { k.end = k.begin + time.Duration(lasts)*time.Hour }

func (k *key) launch() {
	factor := k.between(math.Log(3), math.Log(20))
	ramp := math.Exp(k.between(math.Log(6), math.Log(7*24)))
	k.scale(k.at, hours, func(h int) float64 {
		return math.Exp(factor * min(1, float64(h-k.at+1)/ramp))
	})
}

func (k *key) drift() {
	factor := math.Log(4)
	if k.rng.IntN(2) == 0 {
		factor = -factor
	}
	k.scale(k.at-7*24, hours, func(h int) float64 {
		return math.Exp(factor * min(1, float64(h-k.at+7*24)/(21*24)))
	})
}

func (k *key) holiday() {
	day := k.at / 24 * 24
	k.scale(day, day+24*(1+k.rng.IntN(3)), func(int) float64 { return 0.2 })
}

func (k *key) outage() { k.silence(1 + k.rng.IntN(8)) }

func (k *key) vaultDown() {
	lasts := 1 + k.rng.IntN(8)
	k.silence(lasts)
	k.down, k.up = k.at, k.at+lasts
}

// silence is some hours without a use, and one in which all is caught up with.
func (k *key) silence(lasts int) {
	k.scale(k.at, k.at+lasts, func(int) float64 { return 0 })
	k.scale(k.at+lasts, k.at+lasts+1, func(int) float64 { return 2 })
}

func (k *key) move() { k.moved = k.at }

func (k *key) failedRollover() {
	k.label(hours - k.at)
	for i := range 1 + k.rng.IntN(3) {
		source := fmt.Sprintf("left-behind-%d", i)
		every := k.between(0.01, 2)
		for at := k.begin.Hours(); at < hours; at += k.rng.ExpFloat64() * every {
			k.events = append(k.events, event{at: inHours(at), version: 2, source: source, state: keyring.StateRetired.String(), ended: k.begin})
		}
	}
}

func (k *key) leakKnown() {
	k.label(3 * 24)
	for at := k.begin.Hours(); at < k.end.Hours(); at += k.rng.ExpFloat64() * 10 {
		k.events = append(k.events, event{at: inHours(at), version: 1, source: "elsewhere", state: keyring.StateCompromised.String(), ended: k.begin - 48*time.Hour})
	}
}

func (k *key) thief(uses float64) {
	k.label(24 * (1 + k.rng.IntN(3)))
	for h := k.at; h < k.at+int((k.end-k.begin).Hours()) && h < hours; h++ {
		k.extra[h] = uses
	}
}

func (k *key) leakQuiet() { k.thief(2) }

func (k *key) leakLoud() { k.thief(k.size * k.between(5, 20)) }

func (k *key) attack(perHour float64, lasts int) {
	k.label(lasts)
	for at := k.begin.Hours(); at < k.end.Hours(); at += k.rng.ExpFloat64() / perHour {
		k.events = append(k.events, event{at: inHours(at), wrong: true})
	}
}

func (k *key) bruteForce() {
	k.attack(math.Exp(k.between(math.Log(50), math.Log(1000))), 1+k.rng.IntN(12))
}

func (k *key) bruteForceSlow() { k.attack(k.between(2, 6), 3*24) }

func (k *key) runaway() {
	factor := k.between(5, 20)
	lasts := 3 + k.rng.IntN(22)
	k.label(lasts)
	for h := k.at; h < min(k.at+lasts, hours); h++ {
		k.mean[h] += factor * k.size
	}
}

func (k *key) stop() {
	k.label(7 * 24)
	k.scale(k.at, k.at+7*24, func(int) float64 { return 0 })
}

func inHours(h float64) time.Duration { return time.Duration(h * float64(time.Hour)) }

// draw turns what is expected into uses, by source.
func (k *key) draw() {
	k.counts = make([]uint64, hours)
	k.rename(1 + k.rng.IntN(6))
	deploy := k.rng.IntN(14 * 24)
	for h := range hours {
		if h == k.moved || k.habit == "deployments" && h == deploy {
			k.rename(len(k.sources))
		}
		if h == deploy {
			deploy += 24 * (4 + k.rng.IntN(10))
		}
		own, thief := k.poisson(k.mean[h]), k.poisson(k.extra[h])
		k.counts[h] = uint64(own + thief) //nolint:gosec // both are counts
		for i := range min(own, len(k.sources)) {
			k.use(h, k.sources[i], own/len(k.sources))
		}
		if k.habit == "ever new" && own > 0 {
			for range min(5, k.poisson(min(1, 0.1*float64(own)))) {
				k.named++
				k.use(h, fmt.Sprintf("visitor-%d", k.named), 1)
			}
		}
		k.use(h, "elsewhere", thief)
	}
}

// rename gives the clients new sources.
func (k *key) rename(n int) {
	k.sources = k.sources[:0]
	for range n {
		k.named++
		k.sources = append(k.sources, fmt.Sprintf("instance-%d", k.named))
	}
	if len(k.sources) > 1 {
		k.rng.Shuffle(n, func(i, j int) { k.sources[i], k.sources[j] = k.sources[j], k.sources[i] })
	}
}

func (k *key) use(h int, source string, times int) {
	for range min(times, usesNoted) {
		k.events = append(k.events, event{at: inHours(float64(h) + k.rng.Float64()), version: 3, source: source})
	}
}

// background is what happens to every key: now and then a wrong secret, and
// requests that were on their way when a version was retired.
func (k *key) background() {
	for at := k.rng.ExpFloat64() * 120; at < hours; at += k.rng.ExpFloat64() * 120 {
		k.events = append(k.events, event{at: inHours(at), wrong: true})
	}
	for at := k.between(0, rotateDays*24); at < hours; at += rotateDays * 24 {
		for range k.poisson(1) {
			k.events = append(k.events, event{
				at: inHours(at + k.between(0, 0.05)), version: 1, source: "instance-1",
				state: keyring.StateRetired.String(), ended: inHours(at),
			})
		}
	}
}
