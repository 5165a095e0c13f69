from workers.bridge.worker import main

main()
