// A node of memberlist: prints what it believes, and does what each line of input says.
package main

import (
	"bufio"
	"fmt"
	"log"
	"math/rand"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	patience       = 10 * time.Second
	sampleInterval = 2 * time.Second
	stamp          = 10 * time.Millisecond
)

func say(what, subject string) { fmt.Println(what, subject) }

type events struct{ withUpdates bool }

func (events) NotifyJoin(node *memberlist.Node)   { say("alive", node.Name) }
func (events) NotifyLeave(node *memberlist.Node)  { say("dead", node.Name) }
func (e events) NotifyUpdate(node *memberlist.Node) {
	if e.withUpdates {
		say("updated", node.Name)
	}
}

// What each node tells of itself, and nothing else.
type meta struct{ value atomic.Value }

func (m *meta) NodeMeta(int) []byte             { return []byte(m.value.Load().(string)) }
func (*meta) NotifyMsg([]byte)                  {}
func (*meta) GetBroadcasts(_, _ int) [][]byte   { return nil }
func (*meta) LocalState(bool) []byte            { return nil }
func (*meta) MergeRemoteState(_ []byte, _ bool) {}

func now() int64 { return time.Now().UnixNano() / int64(stamp) }

func pause(most time.Duration) { time.Sleep(time.Duration(rand.Int63n(int64(most)))) }

// Tells another load each second: the time, in hundredths of one, by the machine's clock.
func changeLoad(list *memberlist.Memberlist, own *meta) {
	for pause(time.Second); ; time.Sleep(time.Second) {
		own.value.Store(strconv.FormatInt(now(), 10))
		// It returns once that was sent often enough, which may take longer than a second.
		go list.UpdateNode(0)
	}
}

// Says again and again how old the loads are that this node knows.
func tellAges(list *memberlist.Memberlist, name string) {
	for pause(sampleInterval); ; time.Sleep(sampleInterval) {
		ages := []string{}
		for _, node := range list.Members() {
			load, _ := strconv.ParseInt(string(node.Meta), 10, 64)
			if node.Name != name && load > 0 {
				ages = append(ages, strconv.FormatInt(now()-load, 10))
			}
		}
		say("ages", strings.Join(ages, ","))
	}
}

func main() {
	profile, name, bind, extra, seeds := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]
	rand.Seed(time.Now().UnixNano() + int64(os.Getpid()))
	config := memberlist.DefaultLANConfig()
	if profile == "local" {
		config = memberlist.DefaultLocalConfig()
	}
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		log.Fatal(err)
	}
	config.Name, config.BindAddr, config.AdvertiseAddr = name, host, host
	config.BindPort, _ = strconv.Atoi(port)
	config.AdvertisePort = config.BindPort
	own := &meta{}
	own.value.Store("0")
	config.Events, config.Delegate = events{extra != "loads"}, own
	list, err := memberlist.Create(config)
	if err != nil {
		log.Fatal(err)
	}
	say("ready", name)
	// Unlike Serf it has no retries of its own for a join that failed.
	for attempt := 0; len(seeds) > 0 && attempt < 100; attempt++ {
		if _, err = list.Join(seeds); err == nil {
			break
		}
		time.Sleep(time.Second)
	}
	if extra == "loads" {
		go changeLoad(list, own)
		go tellAges(list, name)
	}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		words := strings.Fields(orders.Text())
		if words[0] == "update" {
			own.value.Store(words[1])
			err = list.UpdateNode(patience)
		} else {
			_, err = list.Join(words[1:])
		}
		if err != nil {
			log.Print(err)
		}
	}
	select {}
}
