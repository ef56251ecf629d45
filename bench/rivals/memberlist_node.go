// A node of memberlist: prints what it believes, and does what each line of input says.
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const patience = 10 * time.Second

func say(what, subject string) { fmt.Println(what, subject) }

type events struct{}

func (events) NotifyJoin(node *memberlist.Node)   { say("alive", node.Name) }
func (events) NotifyLeave(node *memberlist.Node)  { say("dead", node.Name) }
func (events) NotifyUpdate(node *memberlist.Node) { say("updated", node.Name) }

// What each node tells of itself, and nothing else.
type meta struct{ value atomic.Value }

func (m *meta) NodeMeta(int) []byte             { return []byte(m.value.Load().(string)) }
func (*meta) NotifyMsg([]byte)                  {}
func (*meta) GetBroadcasts(_, _ int) [][]byte   { return nil }
func (*meta) LocalState(bool) []byte            { return nil }
func (*meta) MergeRemoteState(_ []byte, _ bool) {}

func main() {
	profile, name, bind, seeds := os.Args[1], os.Args[2], os.Args[3], os.Args[4:]
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
	config.Events, config.Delegate = events{}, own
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
